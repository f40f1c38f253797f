"""Edit an exported graph before it is written: readable names and a dynamic batch size."""

from __future__ import annotations

import ast
import re
from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from m2h_deploy.onnx_graph.edit import drop_unused_initializers, rename_values, replace_nodes
from m2h_deploy.onnx_graph.interface import dims_of

#: Attribute of the traced wrapper that holds the network; its name is removed from every path.
NETWORK = "network"

_SCOPES = "pkg.torch.onnx.name_scopes"


def static_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shape of every value whose shape is known, by name; dynamic dimensions are 0."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    shapes = {value.name: dims_of(value) for value in values if value.type.tensor_type.HasField("shape")}
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer})
    return shapes


def name_by_module(proto: onnx.ModelProto) -> None:
    """Name nodes and values after the module they come from, as in `/wmca/layers.0/attention/MatMul`.

    The paper's block is the first part of the name (`/heads.depth/…`, `/msf.edges/…`); profiles and comparisons are
    reported by block. The exporter's records of the source code are removed.
    """
    renamed: dict[str, str] = {}
    taken: Counter[str] = Counter()
    keep = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    constants = {t.name for t in proto.graph.initializer if not t.name.startswith(f"{NETWORK}.")}
    scope = ""
    for node in proto.graph.node:
        recorded = {entry.key: entry.value for entry in node.metadata_props}
        if _SCOPES in recorded:  # nodes that the optimizer made have none: they take the previous node's scope
            scope = _module_path(ast.literal_eval(recorded[_SCOPES]))
        name = f"{scope}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
        for index, output in enumerate(node.output):
            if output and output not in keep:
                renamed[output] = f"{node.name}_output_{index}"
        for index, value in enumerate(node.input):
            if value in constants:
                renamed.setdefault(value, f"{node.name}_input_{index}")
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in proto.graph.initializer:
        renamed.setdefault(tensor.name, tensor.name.removeprefix(f"{NETWORK}."))
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for value in proto.graph.value_info:
        del value.metadata_props[:]
    rename_values(proto, renamed)


def _module_path(scopes: list[str]) -> str:
    modules = [scope for scope in scopes[:-1] if scope not in ("", NETWORK)]
    if not modules:
        return "/network"
    path = modules[-1].removeprefix(f"{NETWORK}.")
    # Keep an index or a task with the list it belongs to: blocks.3, heads.depth.
    tasks = "depth|semantics|normals|edges"
    return "/" + re.sub(rf"\.(?!\d|(?:{tasks})\b)", "/", path)


def free_batch(proto: onnx.ModelProto) -> None:
    """Make the batch size of a graph traced at batch 1 dynamic, in place.

    In this network the first dimension of every tensor is the batch, or batch x windows, and no other dimension depends
    on it. So the first entry of every constant Reshape target becomes -1, and the sizes of Resize begin with the
    input's batch, which is read once. Inputs and outputs get the symbolic dimension `batch`.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    shapes = static_shapes(proto)
    nodes: list[onnx.NodeProto] = []
    sizes: dict[tuple[int, ...], str] = {}
    for node in proto.graph.node:
        if node.op_type == "Reshape":
            target = constants[node.input[1]]
            known = shapes[node.output[0]] if -1 in target else target
            node.input[1] = f"{node.name}_shape"
            _add_constant(proto, node.input[1], [-1, *known[1:]])
        elif node.op_type == "Resize" and len(node.input) == 4:
            _, *rest = (int(length) for length in constants[node.input[3]])
            if tuple(rest) not in sizes:
                sizes[tuple(rest)] = name = "size_" + "x".join(map(str, rest))
                _add_constant(proto, f"{name}_fixed", rest)
                nodes.append(helper.make_node("Concat", ["batch_size", f"{name}_fixed"], [name], f"/{name}", axis=0))
            node.input[3] = sizes[tuple(rest)]
        nodes.append(node)
    if sizes:
        nodes.insert(0, helper.make_node("Shape", ["image"], ["batch_size"], "/batch_size", start=0, end=1))
    replace_nodes(proto, nodes)
    drop_unused_initializers(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del proto.graph.value_info[:]


def _add_constant(proto: onnx.ModelProto, name: str, values: list[int]) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))


def infer_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return `proto` with the inferred shape of every value.

    Raises:
        onnx.checker.ValidationError: The graph is invalid.
        onnx.shape_inference.InferenceError: The shapes contradict the operators' rules.
    """
    onnx.checker.check_model(proto)
    return shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
