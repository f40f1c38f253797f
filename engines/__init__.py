"""ONNX to engine: one file an engine kind, and `build_bundle` over them.

Names are imported on first use: `engines.inspect.doctor` must run on a device without onnx and without an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.build import build_bundle, trtexec_of
    from engines.lowered import Lowering
    from engines.onnxruntime import OnnxRuntimeOptions
    from engines.openvino import OpenVinoOptions
    from engines.precision.quantization import QuantPolicy, load_policy
    from engines.registry import ENGINES, options_of
    from engines.targets import parse_targets
    from engines.tensorrt import TensorRtOptions

__all__ = [
    "ENGINES",
    "Lowering",
    "OnnxRuntimeOptions",
    "OpenVinoOptions",
    "QuantPolicy",
    "TensorRtOptions",
    "build_bundle",
    "load_policy",
    "options_of",
    "parse_targets",
    "trtexec_of",
]

_HOMES = {
    **dict.fromkeys(("build_bundle", "trtexec_of"), "engines.build"),
    **dict.fromkeys(("ENGINES", "options_of"), "engines.registry"),
    "Lowering": "engines.lowered",
    **dict.fromkeys(("QuantPolicy", "load_policy"), "engines.precision.quantization"),
    "parse_targets": "engines.targets",
    "OnnxRuntimeOptions": "engines.onnxruntime",
    "OpenVinoOptions": "engines.openvino",
    "TensorRtOptions": "engines.tensorrt",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engines' has no attribute '{name}'")
