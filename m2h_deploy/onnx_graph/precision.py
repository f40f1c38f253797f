"""Determine the precision of an ONNX graph from its nodes and weights."""

from __future__ import annotations

import os
from collections.abc import Iterator

import onnx

from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.info import PRECISION, metadata_of


def default_opset(proto: onnx.ModelProto) -> int:
    """Return the version of the standard operators that the graph uses; 0 if unknown."""
    return next((opset.version for opset in proto.opset_import if opset.domain == ""), 0)


#: Operators of quantized graphs: Q/DQ, and those that compute in integers.
_INT8_OPERATORS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)

_HALF, _E4M3 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT8E4M3FN
#: Types that a graph may use in addition to `_HALF` and `_E4M3`. Integers are indices, shapes, pixels and labels.
_PLAIN = frozenset(
    onnx.TensorProto.DataType.Value(name)
    for name in (
        "UNDEFINED", "FLOAT", "DOUBLE", "BOOL", "STRING",
        "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    )
)  # fmt: skip


def graph_precision(proto: onnx.ModelProto, path: str | os.PathLike[str] = "the graph") -> str:
    """Return `fp8`, `int8`, `fp16` or `fp32`, the precision of a strongly typed graph, whatever its metadata says.

    A tensor or cast of E4M3 makes it fp8, other Q/DQ int8; a weight, constant, cast, input or output of float16 makes
    it fp16.

    Raises:
        M2HError: The graph has types that bundles do not support, such as bfloat16 or E5M2.
    """
    types = set(_element_types(proto))
    if others := sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in types - _PLAIN - {_HALF, _E4M3}):
        raise M2HError(f"{path} holds {', '.join(others)}: engines are built from fp32, fp16, int8 or fp8 graphs")
    if _E4M3 in types:
        return "fp8"
    if any(node.op_type in _INT8_OPERATORS for node in _all_nodes(proto)):
        return "int8"
    return "fp16" if _HALF in types else "fp32"


def read_precision(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> str:
    """Return the precision of a graph, as `graph_precision`. Raises M2HError if its metadata contradicts it."""
    found, said = graph_precision(proto, path), metadata_of(proto).get(PRECISION)
    if said is not None and said != found:
        raise M2HError(
            f"{path} is {found} by its nodes and weights, and its metadata says {said}: another tool has changed it; "
            "convert the float32 file of m2h-deploy export again"
        )
    return found


def _element_types(proto: onnx.ModelProto) -> Iterator[int]:
    """Yield the types of all inputs, outputs, weights, constants, casts and quantizations."""
    for value in (*proto.graph.input, *proto.graph.output):
        yield value.type.tensor_type.elem_type
    for tensor in proto.graph.initializer:
        yield tensor.data_type
    for node in _all_nodes(proto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
            elif (node.op_type, attribute.name) in (("Cast", "to"), ("QuantizeLinear", "output_dtype")):
                yield attribute.i
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from (tensor.data_type for tensor in attribute.g.initializer)


def _all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of the graph, of its functions, and of their branches and loops."""
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for attribute in node.attribute for inner in attribute.g.node]
