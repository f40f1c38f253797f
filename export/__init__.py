"""PyTorch to ONNX: the graph that every engine is built from."""

from export.check import CheckReport, check_export
from export.exporter import DEFAULT_OPSET, export_onnx

__all__ = ["DEFAULT_OPSET", "CheckReport", "check_export", "export_onnx"]
