"""Bound the sums inside of operators that add many values: a mean fits into FP16 where its sum overflows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx
from onnx import helper, shape_inference

from m2h_deploy.onnx_graph.interface import dims_of

#: Operators that add values (1) or their squares (2).
_POWERS = {
    "AveragePool": 1,
    "GlobalAveragePool": 1,
    "ReduceL1": 1,
    "ReduceMean": 1,
    "ReduceSum": 1,
    "GroupNormalization": 2,
    "InstanceNormalization": 2,
    "LayerNormalization": 2,
    "ReduceL2": 2,
    "ReduceSumSquare": 2,
}


def largest_sums(proto: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, float]:
    """Return an upper bound of the sum inside of each node that adds many values, by the node's name.

    The bound is the number of terms times the largest one: `largest` is the largest magnitude in each tensor. A
    variance subtracts the mean first, which does not increase the sum of squares.
    """
    graph = shape_inference.infer_shapes(proto).graph
    shapes = {value.name: dims_of(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    return {
        node.name: _terms(node, shapes) * largest[node.input[0]] ** _POWERS[node.op_type]
        for node in graph.node
        if node.op_type in _POWERS and node.input[0] in largest
    }


def _terms(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of values that one result of `node` adds; a free side counts as 1."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    source = [side or 1 for side in shapes[node.input[0]]]
    if node.op_type == "AveragePool":
        return math.prod(attributes["kernel_shape"])
    if node.op_type == "LayerNormalization":
        return math.prod(source[attributes.get("axis", -1) :])
    if node.op_type == "InstanceNormalization":
        return math.prod(source[2:])
    if node.op_type == "GroupNormalization":
        return math.prod(source[1:]) // attributes["num_groups"]
    return math.prod(source) // math.prod(side or 1 for side in shapes[node.output[0]])
