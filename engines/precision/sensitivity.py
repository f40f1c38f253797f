"""Choose the blocks to keep in FP16 so that every output reaches a minimum PSNR.

Quantization is simulated on the float32 graph with Q/DQ around layers, on ONNX Runtime's CPU: the arithmetic is the
same and takes seconds instead of the minutes of a full conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.precision.calibration import Bounds, magnitude
from engines.precision.compare import CpuReference
from engines.precision.quantization import int8_per_channel, output_axis
from m2h_deploy.blocks import block_of
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, replace_nodes

#: A function of (float32 graph, layers, ranges of activations) to the graph with these layers rounded.
Simulation = Callable[[onnx.ModelProto, Sequence[str], Mapping[str, Bounds]], onnx.ModelProto]


def choose_blocks(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    ranges: Mapping[str, Bounds],
    frames: Sequence[NDArray[np.float32]],
    min_psnr: float,
    simulate: Simulation | None = None,
) -> tuple[str, ...]:
    """Choose the layers of `layers` that may be quantized with every output at `min_psnr` decibels or more.

    The noise of the blocks is nearly independent, so its power adds up: the block that adds most to the worst output is
    removed until the others, measured together, reach the limit.

    `simulate` quantizes a float32 graph; None: to INT8.

    Raises:
        M2HError: No block can be quantized.
    """
    simulate = simulate or simulate_int8
    reference = CpuReference(proto, frames)
    by_block: dict[str, list[str]] = {}
    for name in layers:
        by_block.setdefault(block_of(name), []).append(name)
    # Noise that a single quantized block adds to each output, as mean square over the output's span squared.
    left = {block: reference.noise(simulate(proto, names, ranges)) for block, names in by_block.items()}
    limit = 10 ** (-min_psnr / 10)
    while left:
        chosen = [name for block in left for name in by_block[block]]
        expected = {o: sum(noise[o] for noise in left.values()) for o in reference.names}
        measured = expected
        if max(expected.values()) <= limit:
            measured = reference.noise(simulate(proto, chosen, ranges))
            if max(measured.values()) <= limit:
                return tuple(chosen)
        worst = max(measured, key=lambda output: measured[output])
        del left[max(left, key=lambda block: left[block][worst])]
    raise M2HError(f"no block can be quantized with every output at {min_psnr:g} dB: use fp16, or ask for less")


def simulate_int8(
    proto: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Bounds], *, symmetric: bool = True
) -> onnx.ModelProto:
    """Return the float32 graph with Q/DQ on the activations of `layers` and weights rounded to int8 per channel.

    Activations are int8 and symmetric, as on GPUs, or uint8 with a zero point, as on CPUs.
    """
    result = copy_of(proto)
    wanted = set(layers)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    for node in result.graph.node:
        if node.name in wanted:
            source, weight = node.input[0], node.input[1]
            if source not in done:
                done[source] = f"{source}_dequantized"
                nodes.extend(_qdq(result, source, ranges[source], done[source], symmetric=symmetric))
            if weight not in done:
                done[weight] = f"{weight}_rounded"
                exact = numpy_helper.to_array(weights[weight])
                values, scales = int8_per_channel(exact, output_axis(node, exact.ndim))
                result.graph.initializer.append(numpy_helper.from_array(values * scales, done[weight]))
            node.input[0], node.input[1] = done[source], done[weight]
        nodes.append(node)
    replace_nodes(result, nodes)
    return result


def _qdq(proto: onnx.ModelProto, source: str, bounds: Bounds, target: str, *, symmetric: bool) -> list[onnx.NodeProto]:
    scale, zero, middle = f"{source}_scale", f"{source}_zero", f"{source}_quantized"
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    step = ((magnitude(bounds) or 1.0) / 127) if symmetric else ((high - low) or 1.0) / 255
    offset = np.array(0, np.int8) if symmetric else np.array(round(-low / step), np.uint8)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(step, np.float32), scale))
    proto.graph.initializer.append(numpy_helper.from_array(offset, zero))
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [middle]),
        helper.make_node("DequantizeLinear", [middle, scale, zero], [target]),
    ]
