"""Find the nodes of an FP16 graph that stay float32, and the weights that FP16 cannot represent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import numpy_helper

from engines.precision.sums import largest_sums

#: Operators that sum many values. They stay float32 whatever their range: this protects precision, because an FP16 sum
#: loses the small terms even where it does not overflow. TensorRT still fuses attention where only the softmax between
#: its two products is float32.
REDUCTIONS = frozenset(
    {
        "GlobalAveragePool",
        "GroupNormalization",
        "InstanceNormalization",
        "LayerNormalization",
        "ReduceL2",
        "ReduceMean",
        "ReduceSum",
        "Softmax",
    }
)

#: Largest magnitude of FP16, the smallest with full precision, and the smallest.
FP16_MAX = 65504.0
FP16_NORMAL = 2.0**-14
FP16_TINY = 2.0**-24

#: Nodes that read or write a tensor beyond FP16's largest value divided by this stay float32: other frames than those
#: that were measured may have larger values.
HEADROOM = 8.0

#: If more than this share of a weight's values underflows in FP16, the node that uses it stays float32.
UNDERFLOW_SHARE = 0.01


@dataclass(frozen=True)
class Island:
    """A node that stays float32, and the reason."""

    node: str
    reason: Literal["range", "sum", "reduction", "depth output", "unit normals", "position resize", "weights"]


@dataclass(frozen=True)
class WeightRisk:
    """A weight with values that FP16 cannot represent, and how it was handled."""

    initializer: str
    node: str
    kind: Literal["underflow", "overflow"]
    values: int
    total: int
    action: Literal["node kept in float32", "rounded to FP16's smallest value"]


def find_islands(proto: onnx.ModelProto, largest: Mapping[str, float] | None) -> tuple[Island, ...]:
    """Find the nodes of `proto` that stay float32, in graph order.

    `largest` is the largest magnitude measured in each activation, or None without measurements. Weights are the same
    for all frames, so they need no headroom: `weight_risks` finds those beyond FP16.
    """
    reasons: dict[str, Island] = {}
    tails = dict(_output_tails(proto))
    sums = largest_sums(proto, largest) if largest else {}
    for node in proto.graph.node:
        reason: str | None = None
        if largest and any(_is_outside(largest.get(name, 0.0)) for name in (*node.input, *node.output)):
            reason = "range"
        elif sums.get(node.name, 0.0) > FP16_MAX:  # without headroom: the bound takes all terms for the largest
            reason = "sum"
        elif node.op_type in REDUCTIONS:
            reason = "reduction"
        elif node.name in tails:
            reason = tails[node.name]
        elif node.op_type == "Resize" and _is_cubic(node):
            reason = "position resize"
        if reason is not None:
            reasons[node.name] = Island(node.name, reason)  # type: ignore[arg-type]
    return tuple(reasons.values())


def islands_and_risks(
    proto: onnx.ModelProto, largest: Mapping[str, float] | None
) -> tuple[tuple[Island, ...], tuple[WeightRisk, ...]]:
    """Return all nodes that stay float32, for their ranges or for their weights, and the risks of the weights."""
    islands = find_islands(proto, largest)
    risks = weight_risks(proto, islands)
    kept = dict.fromkeys(risk.node for risk in risks if risk.action == "node kept in float32")
    return (*islands, *(Island(name, "weights") for name in kept)), risks


def _is_outside(largest: float) -> bool:
    """Return whether a tensor comes near FP16's largest value, or has no value with full precision in FP16."""
    return largest > FP16_MAX / HEADROOM or 0 < largest < FP16_NORMAL


def _is_cubic(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "mode" and attribute.s == b"cubic" for attribute in node.attribute)


def _output_tails(proto: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Yield the last layers of depth (meters need more than FP16's 11 bits) and the division of the unit normals."""
    producers = {output: node for node in proto.graph.node for output in node.output}
    for name, reason in (("depth", "depth output"), ("normals", "unit normals")):
        node = producers.get(name)
        while node is not None and node.op_type != "Conv":
            if reason == "depth output":
                yield node.name, reason
            elif node.op_type == "Div":
                yield from ((found.name, reason) for found in _division(node, producers))
            node = producers.get(node.input[0])
        if node is not None and reason == "depth output":
            yield node.name, reason


def _division(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield a Div and the nodes that guard its divisor against zero: the guard's constant is too small for FP16."""
    yield node
    below = producers.get(node.input[1])
    while below is not None and below.op_type in ("Expand", "Clip", "Max"):
        yield below
        below = producers.get(below.input[0])


def weight_risks(proto: onnx.ModelProto, islands: Sequence[Island]) -> tuple[WeightRisk, ...]:
    """Return the weights of nodes outside `islands` with values outside FP16's range."""
    in_float32 = {island.node for island in islands}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    risks: list[WeightRisk] = []
    for node in proto.graph.node:
        if node.name in in_float32:
            continue
        for name in dict.fromkeys(node.input):
            if name in weights:
                risks.extend(_risks_of(name, node.name, numpy_helper.to_array(weights[name])))
    return tuple(risks)


def _risks_of(name: str, node: str, values: np.ndarray) -> Iterator[WeightRisk]:
    magnitudes = np.abs(values[values != 0])
    high, low = magnitudes[magnitudes > FP16_MAX], magnitudes[magnitudes < FP16_TINY]
    if high.size:
        yield WeightRisk(name, node, "overflow", high.size, values.size, "node kept in float32")
    if low.size:
        many = low.size > UNDERFLOW_SHARE * magnitudes.size
        action: Literal["node kept in float32", "rounded to FP16's smallest value"] = (
            "node kept in float32" if many else "rounded to FP16's smallest value"
        )
        yield WeightRisk(name, node, "underflow", low.size, values.size, action)
