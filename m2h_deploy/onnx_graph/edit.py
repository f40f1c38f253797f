"""Edit the graph of an ONNX file in place."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def drop_unused_initializers(proto: onnx.ModelProto) -> None:
    """Remove constants that no node and no output needs."""
    used = {name for node in proto.graph.node for name in node.input}
    used.update(value.name for value in proto.graph.output)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def rename_values(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename values, constants, inputs and outputs; what is not in `names` keeps its name."""
    graph = proto.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
