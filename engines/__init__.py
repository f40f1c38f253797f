"""ONNX to engine: one file an engine kind, and `build_bundle` over them."""

from engines.build import ENGINES, build_bundle

__all__ = ["ENGINES", "build_bundle"]
