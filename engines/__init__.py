"""ONNX to engine: one file an engine kind, and `build_bundle` over them."""

from engines.build import ENGINES, Lowering, build_bundle
from engines.quantization import QuantPolicy, load_policy
from engines.targets import parse_targets
from engines.tensorrt import BuildOptions

__all__ = ["ENGINES", "BuildOptions", "Lowering", "QuantPolicy", "build_bundle", "load_policy", "parse_targets"]
