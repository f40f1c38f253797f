"""FP8 (E4M3) by explicit Q/DQ: choose the layers, and insert the nodes.

GPUs of compute capability 8.9 and later compute in FP8. ModelOpt's own FP8 mode calibrates by itself, on all frames at
once and with other layers than a policy names, so the nodes are inserted here, with the ranges of
`engines.precision.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.precision.calibration import Bounds, magnitude
from engines.precision.headroom import E4M3_MAX
from engines.precision.quantization import QuantPolicy, chosen_layers, output_axis
from m2h_deploy.blocks import KEPT_IN_FLOAT, matches
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, drop_unused_initializers, replace_nodes

#: Layers with fewer input or output channels stay in FP16: E4M3 rounds to 4 significant bits, which INT8 exceeds unless
#: a few values are much larger than the rest. Measured on m2h-tiny: with layers of 32 channels, semantics and normals
#: are below INT8's; with those of 64 all outputs are above (docs/precision.md).
MIN_CHANNELS = 64

#: Layers that stay in FP16 besides `KEPT_IN_FLOAT`, unless a policy names its own: the noise of the first block reaches
#: everything. On m2h-tiny it adds half of the noise of depth and edges.
KEPT_IN_HALF = ("/backbone/blocks.0/*",)

_E4M3 = onnx.TensorProto.FLOAT8E4M3FN


def fp8_layers(proto: onnx.ModelProto, policy: QuantPolicy) -> tuple[str, ...]:
    """Return the layers that `policy` quantizes and that are wide enough for FP8. See `KEPT_IN_HALF`.

    Raises:
        M2HError: A pattern matches no layer, or no layer is left.
    """
    shapes = {tensor.name: tensor.dims for tensor in proto.graph.initializer}
    wide = {
        node.name
        for node in proto.graph.node
        if len(node.input) > 1 and node.input[1] in shapes and min(shapes[node.input[1]][:2], default=0) >= MIN_CHANNELS
    }
    kept = KEPT_IN_HALF if policy.keep == KEPT_IN_FLOAT else ()
    names = tuple(name for name in chosen_layers(proto, policy) if name in wide and not matches(name, kept))
    if not names:
        raise M2HError(
            f"no layer that the policy quantizes has {MIN_CHANNELS} input and output channels, as FP8 needs: use fp16 "
            "or int8, or widen 'quantize'"
        )
    return names


def insert_fp8(proto: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Bounds]) -> onnx.ModelProto:
    """Insert Q/DQ around `layers`: activations per tensor with the given ranges, weights E4M3 per output channel."""
    result, wanted = copy_of(proto), set(layers)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    made: set[str] = set()
    for node in result.graph.node:
        if node.name in wanted:
            source, weight = node.input[0], node.input[1]
            if source not in made:
                nodes += _activation_nodes(result, node.name, source, magnitude(ranges[source]))
            if weight not in made:
                values = numpy_helper.to_array(weights[weight])
                nodes.append(_weight_node(result, node.name, weight, values, output_axis(node, values.ndim)))
            made |= {source, weight}
            node.input[0], node.input[1] = f"{source}_dequantized", f"{weight}_dequantized"
        nodes.append(node)
    replace_nodes(result, nodes)
    drop_unused_initializers(result)
    return result


def _activation_nodes(proto: onnx.ModelProto, layer: str, source: str, largest: float) -> list[onnx.NodeProto]:
    scale, zero, middle = f"{source}_scale", f"{source}_zero_point", f"{source}_quantized"
    proto.graph.initializer.append(numpy_helper.from_array(_scales(np.array(largest)), scale))
    proto.graph.initializer.append(helper.make_tensor(zero, _E4M3, [], b"\0", raw=True))
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [middle], f"{layer}_quantize"),
        helper.make_node("DequantizeLinear", [middle, scale, zero], [f"{source}_dequantized"], f"{layer}_dequantize"),
    ]


def _weight_node(
    proto: onnx.ModelProto, layer: str, name: str, values: NDArray[np.float32], axis: int
) -> onnx.NodeProto:
    import ml_dtypes  # comes with ModelOpt's ONNX tools, which a device has no need of

    others = tuple(index for index in range(values.ndim) if index != axis)
    scales = _scales(np.abs(values).max(axis=others, keepdims=True))
    rounded = np.clip(values / scales, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    proto.graph.initializer.append(helper.make_tensor(f"{name}_fp8", _E4M3, values.shape, rounded.tobytes(), raw=True))
    proto.graph.initializer.append(numpy_helper.from_array(scales.ravel(), f"{name}_scale"))
    inputs, outputs = [f"{name}_fp8", f"{name}_scale"], [f"{name}_dequantized"]
    return helper.make_node("DequantizeLinear", inputs, outputs, f"{layer}_weight", axis=axis)


def _scales(largest: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return scales that FP16, in which the lowered graph stores them, holds exactly and as normal numbers."""
    scales = np.minimum(largest / E4M3_MAX, np.finfo(np.float16).max).astype(np.float16)
    return np.maximum(scales, np.finfo(np.float16).tiny).astype(np.float32)
