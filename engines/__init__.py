"""Build engines from ONNX: one module per engine kind, and `build_bundle` for all of them.

Modules that need onnx are imported on first use: `engines.inspect.doctor` must run on a device without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from engines.onnxruntime import OnnxRuntimeOptions
from engines.openvino import OpenVinoOptions
from engines.registry import ENGINES, options_of
from engines.targets import parse_targets
from engines.tensorrt import TensorRtOptions

if TYPE_CHECKING:
    from engines.build import build_bundle, trtexec_of
    from engines.precision.lowering import Lowering
    from engines.precision.quantization import QuantPolicy, load_policy

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
    "Lowering": "engines.precision.lowering",
    **dict.fromkeys(("QuantPolicy", "load_policy"), "engines.precision.quantization"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'engines' has no attribute '{name}'")
