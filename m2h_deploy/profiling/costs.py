"""Count the operations and memory traffic of a graph, node by node, from its shapes; nothing is run.

A multiply-accumulate (MAC) is counted for every product that a Conv, ConvTranspose, Gemm, MatMul, Einsum or attention
node adds up; other nodes have no MACs. Bytes are those of a node's own tensors, read and written once each; nodes that
only change a tensor's shape move no bytes. An engine that fuses nodes moves less. If the batch is dynamic, the figures
are for one frame.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from onnx import TensorProto, helper

from m2h_deploy.blocks import UNKNOWN, block_of
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.files import onnx_sha256, read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.profiling.layers import BlockCost

_log = logging.getLogger("m2h_deploy.profiling.costs")

Precision = Literal["float32", "float16", "int8", "fp8", "other"]

_PRECISIONS: dict[int, Precision] = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
}

#: Operators that a runtime implements as a view of their input, or that only read a shape.
_FREE = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Constant"}

#: ONNX Runtime's fused operators whose output has the shape of their first input.
_SHAPED_LIKE_INPUT = {"BiasGelu", "FastGelu", "QuickGelu", "SkipLayerNormalization", "MultiHeadAttention"}


@dataclass(frozen=True)
class Tensor:
    """Type and shape of a value in the graph."""

    dtype: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node; `macs` and `nbytes` are None if its shapes are known only at run time."""

    name: str
    operator: str
    block: str
    precision: Precision
    """Precision that it computes in; `other` for index arithmetic."""
    macs: int | None
    nbytes: int | None
    weights: tuple[Tensor, ...]
    """Constants that no earlier node reads."""


def node_costs(proto: onnx.ModelProto) -> tuple[NodeCost, ...]:
    """Return the cost of every node of a graph, with function calls replaced by the functions' bodies."""
    flat, _ = inline_functions(proto)
    constants = _constants(flat)
    tensors = _infer(flat, constants) | constants
    blocks = _blocks(flat)
    producers = {name: node for node in flat.graph.node for name in node.output}
    seen: set[str] = set()
    costs = []
    for node, block in zip(flat.graph.node, blocks, strict=True):
        if node.op_type == "Constant":
            continue
        fresh = [name for name in node.input if name in constants and name not in seen]
        seen.update(fresh)
        costs.append(
            NodeCost(
                name=node.name,
                operator=operator(node),
                block=block,
                precision=_precision(node, tensors, producers),
                macs=_macs(node, tensors),
                nbytes=_moved(node, tensors),
                weights=tuple(constants[name] for name in dict.fromkeys(fresh)),
            )
        )
    return tuple(costs)


def operator(node: onnx.NodeProto) -> str:
    """Return a node's operator: `Conv`, or `m2h::WindowPartition` for an operator of another domain."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def precision_of(dtype: int) -> Precision:
    """Return the precision of an ONNX element type."""
    return _PRECISIONS.get(dtype, "other")


def _constants(proto: onnx.ModelProto) -> dict[str, Tensor]:
    found = {t.name: Tensor(t.data_type, tuple(t.dims)) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = Tensor(attribute.t.data_type, tuple(attribute.t.dims))
    return found


def _infer(proto: onnx.ModelProto, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Infer types and full shapes of the values of a graph, at batch 1 if the batch is dynamic."""
    skeleton = _skeleton(proto, constants)
    inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    found = {}
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = Tensor(value.type.tensor_type.elem_type, tuple(dim.dim_value for dim in dims))
    return found


def _skeleton(proto: onnx.ModelProto, constants: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Return the graph without its large constants, in standard operators, for shape inference only."""
    result = onnx.ModelProto(ir_version=proto.ir_version)
    result.opset_import.extend(proto.opset_import)
    result.graph.name = proto.graph.name
    small = 4096
    for tensor in proto.graph.initializer:
        if constants[tensor.name].size <= small:
            result.graph.initializer.append(tensor)
        else:
            shape = constants[tensor.name].shape
            result.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
    known = {tensor.name for tensor in proto.graph.initializer}
    result.graph.input.extend(_at_batch_one(value) for value in proto.graph.input if value.name not in known)
    batch = {dim.dim_param for value in proto.graph.input for dim in value.type.tensor_type.shape.dim} - {""}
    for value in proto.graph.value_info:
        if all(d.HasField("dim_value") or d.dim_param in batch for d in value.type.tensor_type.shape.dim):
            result.graph.value_info.append(_at_batch_one(value))
    for value in proto.graph.output:
        result.graph.output.append(onnx.ValueInfoProto(name=value.name))
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*proto.graph.value_info, *proto.graph.input)}
    for node in proto.graph.node:
        result.graph.node.extend(_standard(node, ranks))
    return result


def _at_batch_one(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    for dim in copy.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            dim.dim_value = 1
    return copy


def _standard(node: onnx.NodeProto, ranks: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Convert a fused node of ONNX Runtime to standard ones of the same output shape; keep others."""
    if node.domain != "com.microsoft":
        return [node]
    if node.op_type in _SHAPED_LIKE_INPUT:
        return [helper.make_node("Identity", [node.input[0]], [node.output[0]])]
    if node.op_type == "FusedConv":
        plain = helper.make_node("Conv", list(node.input)[:3], list(node.output))
        plain.attribute.extend(a for a in node.attribute if not a.name.startswith("activation"))
        return [plain]
    if node.op_type == "FusedMatMul":
        nodes, inputs = [], list(node.input)
        for index, flag in enumerate(("transA", "transB")):
            if _integer(node, flag):
                axes = list(range(ranks.get(inputs[index], 2)))
                axes[-2:] = axes[:-3:-1]
                nodes.append(helper.make_node("Transpose", [inputs[index]], [f"{node.output[0]}/{flag}"], perm=axes))
                inputs[index] = nodes[-1].output[0]
        return [*nodes, helper.make_node("MatMul", inputs, list(node.output))]
    return [node]


def _blocks(proto: onnx.ModelProto) -> list[str]:
    """Return the block of every node.

    A node that a tool inserted belongs to the block that reads its result, else to the one that makes its input.
    """
    nodes = list(proto.graph.node)
    blocks = [block_of(node.name) for node in nodes]
    readers: dict[str, str] = {}
    for place in reversed(range(len(nodes))):
        if blocks[place] == UNKNOWN:
            blocks[place] = next((readers[name] for name in nodes[place].output if name in readers), UNKNOWN)
        if blocks[place] != UNKNOWN:
            readers.update(dict.fromkeys(nodes[place].input, blocks[place]))
    makers: dict[str, str] = {}
    for place, node in enumerate(nodes):
        if blocks[place] == UNKNOWN:
            blocks[place] = next((makers[name] for name in node.input if name in makers), UNKNOWN)
        makers.update(dict.fromkeys(node.output, blocks[place]))
    return blocks


def _precision(
    node: onnx.NodeProto, tensors: Mapping[str, Tensor], producers: Mapping[str, onnx.NodeProto]
) -> Precision:
    """Return a node's precision: int8 or fp8 for a product of two dequantized tensors, else the type that it reads."""
    if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and all(
        name in producers and producers[name].op_type == "DequantizeLinear" for name in list(node.input)[:2]
    ):
        stored = tensors.get(producers[node.input[1]].input[0])
        return "fp8" if stored is not None and precision_of(stored.dtype) == "fp8" else "int8"
    names = node.output if node.op_type in ("Cast", "DequantizeLinear") else node.input
    types = [tensors[name].dtype for name in names if name in tensors]
    return next((found for dtype in types if (found := precision_of(dtype)) != "other"), "other")


def _moved(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    if node.op_type in _FREE:
        return 0
    names = [*dict.fromkeys(name for name in node.input if name), *(name for name in node.output if name)]
    if any(name not in tensors for name in names):
        return None
    return sum(tensors[name].nbytes for name in names)


def _macs(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int | None:
    """Count a node's multiply-accumulates; 0 for other operators, None if a shape is missing."""
    kind = node.op_type
    try:
        if kind in ("Conv", "FusedConv", "ConvInteger"):
            return _size(node.output[0], tensors) * math.prod(tensors[node.input[1]].shape[1:])
        if kind == "ConvTranspose":
            return _size(node.input[0], tensors) * math.prod(tensors[node.input[1]].shape[1:])
        if kind in ("MatMul", "FusedMatMul", "MatMulInteger", "Gemm"):
            transposed = _integer(node, "transA")
            return _size(node.output[0], tensors) * tensors[node.input[0]].shape[-2 if transposed else -1]
        if kind in ("QLinearConv", "QLinearMatMul"):
            second = tensors[node.input[3]].shape
            inner = math.prod(second[1:]) if kind == "QLinearConv" else second[-2]
            return _size(node.output[0], tensors) * inner
        if kind == "Einsum":
            return _einsum_macs(node, tensors)
        if kind in ("Attention", "MultiHeadAttention"):
            return _attention_macs([tensors[name].shape for name in list(node.input)[:3]], node.domain)
    except KeyError:
        return None
    return 0


def _size(name: str, tensors: Mapping[str, Tensor]) -> int:
    return tensors[name].size


def _einsum_macs(node: onnx.NodeProto, tensors: Mapping[str, Tensor]) -> int:
    """Count one MAC for every combination of the operands' indices."""
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").replace(" ", "")
    sides: dict[str, int] = {}
    for term, name in zip(equation.split("->")[0].split(","), node.input, strict=True):
        shape = tensors[name].shape
        if "..." in term:
            free = len(shape) - len(term) + 3
            term = term.replace("...", "".join(chr(0x391 + index) for index in range(free)))
        for index, side in zip(term, shape, strict=True):
            sides[index] = max(sides.get(index, 1), side)
    return math.prod(sides.values()) if len(node.input) > 1 else 0


def _attention_macs(shapes: Sequence[tuple[int, ...]], domain: str) -> int:
    """Count scores and weighted values, for Q, K, V as (batch, rows, width) or (batch, heads, rows, width)."""
    if domain == "com.microsoft" and len(shapes[1]) == 2:  # Attention with its projection: input, weight, bias
        rows, width = math.prod(shapes[0][:-1]), shapes[1][-1]
        return rows * math.prod(shapes[1]) + rows * shapes[0][-2] * (width // 3) * 2
    query, key, value = shapes
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]


def _integer(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def total(values: Iterable[int | None]) -> int:
    """Sum the known values."""
    return sum(value or 0 for value in values)


def uncounted(costs: Sequence[NodeCost]) -> dict[str, int]:
    """Count, by operator, the nodes whose shapes are known only at run time."""
    return dict(Counter(cost.operator for cost in costs if cost.macs is None or cost.nbytes is None))


def block_costs(bundle: Bundle, graphs: Sequence[Path] = ()) -> dict[str, BlockCost] | None:
    """Return the MACs and bytes of each block of a bundle's network; None, and a warning, where they are not known.

    They are read from the engine where it is an ONNX file, else from the one of `graphs` that it was built from.
    Raises M2HError where graphs are given and the bundle was built from none of them.
    """
    file = bundle.engine_file if bundle.engine_file.suffix == ".onnx" else _source_of(bundle, graphs)
    if file is None:
        return None
    costs = node_costs(read_onnx(file))
    return {
        block: BlockCost(
            macs=total(cost.macs for cost in costs if cost.block == block),
            nbytes=total(cost.nbytes for cost in costs if cost.block == block),
        )
        for block in dict.fromkeys(cost.block for cost in costs)
    }


def _source_of(bundle: Bundle, graphs: Sequence[Path]) -> Path | None:
    for graph in graphs:
        if onnx_sha256(graph) == bundle.manifest.model.onnx_sha256:
            return graph
    if graphs:
        raise M2HError(f"{bundle.path} was built from none of {', '.join(map(str, graphs))}: the sha256 differs")
    _log.warning(
        f"{bundle.path}: MACs and bytes are not counted: give the ONNX file that it was built from with --built-from"
    )
    return None
