"""Export a PyTorch checkpoint to ONNX: the graph that every engine is built from."""

from export.check import CheckReport, check_export
from export.exporter import ExportResult, export_onnx
from export.locate import locate_difference
from export.options import ExportOptions
from export.raw_pixels import Sensor, add_sensor
from export.raw_pixels_check import check_sensor

__all__ = [
    "CheckReport",
    "ExportOptions",
    "ExportResult",
    "Sensor",
    "add_sensor",
    "check_export",
    "check_sensor",
    "export_onnx",
    "locate_difference",
]
