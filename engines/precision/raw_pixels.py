"""Take the network out of a sensor graph, and put another version in its place.

Precision conversion applies only to the network: preprocess and postprocess of a sensor graph stay float32, as
exported, so that pixels, meters and labels are exact. Calibration frames, islands and sensitivity therefore work on the
plain graph, which is taken out here and put back afterwards.
"""

from __future__ import annotations

import onnx

from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.edit import copy_of, drop_unused_initializers, rename_values, replace_nodes
from m2h_deploy.tasks import TASKS

#: Prefix of the network's own input and outputs inside of a sensor graph.
BORDER = "network/"
_PARTS = ("/preprocess/", "/postprocess/")


def take_network(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the plain graph inside the sensor graph `proto`: normalized image in, the network's outputs out."""
    values = {value.name: value for value in proto.graph.value_info}
    made = {name for node in proto.graph.node if not _is_outside(node) for name in node.output}
    inner = copy_of(proto)
    nodes = [node for node in inner.graph.node if not _is_outside(node)]
    inputs = [name for name in values if name.startswith(BORDER) and name not in made]
    outputs = [name for node in nodes for name in node.output if name.startswith(BORDER)]
    wanted = [f"{BORDER}{name}" for name in TASKS]
    if inputs != [f"{BORDER}image"] or not outputs:
        raise M2HError("the sensor graph does not name the network inside of it: export it again")
    replace_nodes(inner, nodes)
    del inner.graph.input[:], inner.graph.output[:]
    inner.graph.input.extend(values[name] for name in inputs)
    inner.graph.output.extend(values[name] for name in wanted if name in outputs)
    kept = [value for value in inner.graph.value_info if _belongs(value.name) and not value.name.startswith(BORDER)]
    del inner.graph.value_info[:]
    inner.graph.value_info.extend(kept)
    drop_unused_initializers(inner)
    rename_values(inner, {name: name.removeprefix(BORDER) for name in (*inputs, *outputs)})
    del inner.metadata_props[:]  # it describes the whole graph
    return inner


def put_network(sensor: onnx.ModelProto, network: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the network of the sensor graph `sensor` by `network`, whose inputs and outputs are float32."""
    inner = copy_of(network)
    border = [value.name for value in (*inner.graph.input, *inner.graph.output)]
    rename_values(inner, {name: f"{BORDER}{name}" for name in border})
    result = copy_of(inner)
    before = [node for node in sensor.graph.node if node.name.startswith(_PARTS[0])]
    after = [node for node in sensor.graph.node if node.name.startswith(_PARTS[1])]
    replace_nodes(result, [*before, *inner.graph.node, *after])
    del result.graph.input[:], result.graph.output[:]
    result.graph.input.extend(sensor.graph.input)
    result.graph.output.extend(sensor.graph.output)
    used = {name for node in (*before, *after) for name in node.input}
    result.graph.initializer.extend(tensor for tensor in sensor.graph.initializer if tensor.name in used)
    known = {value.name for value in result.graph.value_info}
    result.graph.value_info.extend(
        value for value in sensor.graph.value_info if not _belongs(value.name) and value.name not in known
    )
    result.graph.value_info.extend((*inner.graph.input, *inner.graph.output))
    del result.metadata_props[:]
    result.metadata_props.extend(sensor.metadata_props)
    return result


def _is_outside(node: onnx.NodeProto) -> bool:
    return node.name.startswith(_PARTS)


def _belongs(value: str) -> bool:
    return not value.startswith(_PARTS)
