"""Edit ONNX graphs: nodes, names of values, initializers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a modifiable copy of `proto`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def replace_nodes(proto: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the graph's nodes by `nodes`, in place."""
    kept = list(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def rename_values(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename the graph's values that are keys of `names`, in place: inputs, outputs, weights and results of nodes."""
    graph = proto.graph
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)


def drop_unused_initializers(proto: onnx.ModelProto) -> None:
    """Remove constants that neither a node nor an output uses, in place."""
    used = {name for node in proto.graph.node for name in node.input}
    used.update(value.name for value in proto.graph.output)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def keep_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Remove all other outputs, and the nodes and constants that only they need, in place."""
    outputs = [value for value in proto.graph.output if value.name in names]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    needed, kept = set(names), []
    for node in reversed(proto.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            needed.update(name for graph in _subgraphs(node) for inner in graph.node for name in inner.input)
            kept.append(node)
    replace_nodes(proto, reversed(kept))
    drop_unused_initializers(proto)
    made = {name for node in kept for name in node.output}
    values = [value for value in proto.graph.value_info if value.name in made]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(values)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            yield graph
            yield from (inner for child in graph.node for inner in _subgraphs(child))
