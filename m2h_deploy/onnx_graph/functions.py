"""Inline ONNX functions and restore them, for tools that know only standard operators.

Quantizers and OpenVINO do not support functions of a custom domain. `inline_functions` replaces every call by its body
and records which nodes came from which call; after a tool has worked on the graph, `outline_functions` restores the
calls around the same nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import inliner

from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, drop_unused_initializers, replace_nodes


@dataclass(frozen=True)
class FunctionCall:
    """One inlined call: the original node, and the names of the nodes that replace it."""

    node: onnx.NodeProto
    body: frozenset[str]


def inline_functions(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[FunctionCall, ...]]:
    """Return the graph without functions, and the replaced calls. Node names stay unique."""
    if not proto.functions:
        return proto, ()
    domains = {function.domain for function in proto.functions}
    inlined = inliner.inline_local_functions(proto)
    calls, place = [], 0
    for node in proto.graph.node:
        if node.domain not in domains:
            place += 1
            continue
        # The inliner keeps the order of nodes and the names of a call's outputs: the body ends where they appear.
        start, wanted = place, set(node.output)
        while wanted:
            wanted -= set(inlined.graph.node[place].output)
            place += 1
        for index, body_node in enumerate(inlined.graph.node[start:place]):
            body_node.name = f"{node.name}/{body_node.op_type}_{index}"
        calls.append(FunctionCall(node, frozenset(n.name for n in inlined.graph.node[start:place])))
    return inlined, tuple(calls)


def outline_functions(
    proto: onnx.ModelProto, calls: tuple[FunctionCall, ...], original: onnx.ModelProto
) -> onnx.ModelProto:
    """Restore the calls that `inline_functions` replaced, whatever was inserted around them.

    The functions' bodies are polymorphic in the element type, so they are valid for FP16 as for float32.

    Raises:
        M2HError: Nodes were inserted into a body or removed from it.
    """
    if not calls:
        return proto
    nodes = list(proto.graph.node)
    for call in calls:
        nodes = _outline(nodes, call)
    result = copy_of(proto)
    replace_nodes(result, nodes)
    del result.functions[:]
    result.functions.extend(original.functions)
    present = {opset.domain for opset in result.opset_import}
    result.opset_import.extend(o for o in original.opset_import if o.domain not in present)
    drop_unused_initializers(result)
    return result


def _outline(nodes: list[onnx.NodeProto], call: FunctionCall) -> list[onnx.NodeProto]:
    body = [node for node in nodes if node.name in call.body]
    made = {name for node in body for name in node.output}
    # The body's input is the first input of the chain's first node; its other inputs are constants.
    entries = [node.input[0] for node in body if node.op_type != "Constant" and node.input[0] not in made]
    leaves = [name for node in nodes if node.name not in call.body for name in node.input if name in made]
    if len(set(entries)) != 1 or len(set(leaves)) != 1:
        raise M2HError(f"{call.node.name}: its body was changed, so it cannot be a function again; export without")
    replacement = onnx.NodeProto()
    replacement.CopyFrom(call.node)
    replacement.input[:] = entries[:1]
    replacement.output[:] = leaves[:1]
    place = next(index for index, node in enumerate(nodes) if node.name == body[0].name)
    rest = [node for node in nodes[:place] if node.name not in call.body]
    return [*rest, replacement, *(node for node in nodes[place:] if node.name not in call.body)]
