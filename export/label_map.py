"""Reduce the class logits of an exported graph over the groups of a label map, in the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from m2h_deploy.bundle.manifest import LabelMap
from m2h_deploy.onnx_graph.edit import rename_values

#: The nodes belong to the block of the head.
_PART = "/heads.semantics/label_map"
_LOGITS = f"{_PART}/logits"
_OUTPUT = "semantics"


def reduce_semantics(proto: onnx.ModelProto, label_map: LabelMap) -> None:
    """Make `semantics` the logits of the groups of `label_map`, in place; see `reduce_logits` for their values.

    It is the last step of the graph: the maximum does not commute with the head's resize. Groups of the same size are
    reduced together, by one Max of as many maps as they have classes, because engines take several times as long for
    single channels.
    """
    rename_values(proto, {_OUTPUT: _LOGITS})
    output = next(value for value in proto.graph.output if value.name == _LOGITS)
    proto.graph.value_info.append(output)
    output.name = _OUTPUT
    output.type.tensor_type.shape.dim[1].dim_value = len(label_map.groups)
    same: dict[int, list[int]] = {}
    for index, group in enumerate(label_map.groups):
        same.setdefault(len(group), []).append(index)
    empty = same.pop(0, [])
    parts, order = _maxima(proto, label_map, same)
    value = _concatenated(proto, parts, f"{_PART}/groups")
    # All empty groups share one channel, the last.
    places = {index: place for place, index in enumerate(order)} | dict.fromkeys(empty, len(order))
    if empty:
        value = _with_empty(proto, value)
    indices = [places[index] for index in range(len(label_map.groups))]
    _add(proto, "Gather", [value, _constant(proto, f"{_PART}/order", indices)], [_OUTPUT], axis=1)


def _maxima(proto: onnx.ModelProto, label_map: LabelMap, same: dict[int, list[int]]) -> tuple[list[str], list[int]]:
    """Append the maxima of the groups, by their size; return the values and the groups of their channels in order."""
    sources: list[int] = []
    lengths: list[int] = []
    for size, members in same.items():
        for rank in range(size):
            sources += [label_map.groups[index][rank] for index in members]
            lengths.append(len(members))
    value = _LOGITS
    if sources != list(range(len(label_map.network_classes))):
        value = f"{_PART}/sorted"
        _add(proto, "Gather", [_LOGITS, _constant(proto, f"{_PART}/classes", sources)], [value], axis=1)
    ranks = [value]
    if len(lengths) > 1:
        ranks = [f"{_PART}/part_{index}" for index in range(len(lengths))]
        _add(proto, "Split", [value, _constant(proto, f"{_PART}/lengths", lengths)], ranks, axis=1)
    parts: list[str] = []
    for size in same:
        mine, ranks = ranks[:size], ranks[size:]
        if size > 1:
            _add(proto, "Max", mine, [f"{_PART}/largest_of_{size}"])
        parts.append(f"{_PART}/largest_of_{size}" if size > 1 else mine[0])
    return parts, [index for members in same.values() for index in members]


def _with_empty(proto: onnx.ModelProto, filled: str) -> str:
    """Append one channel for all empty groups: below every other, and in the range of logits."""
    least, below = f"{_PART}/least", f"{_PART}/empty"
    _add(proto, "ReduceMin", [filled, _constant(proto, f"{_PART}/axis", [1])], [least], keepdims=1)
    _add(proto, "Sub", [least, _constant(proto, f"{_PART}/one", np.float32(1))], [below])
    return _concatenated(proto, [filled, below], f"{_PART}/groups_and_empty")


def _concatenated(proto: onnx.ModelProto, parts: list[str], name: str) -> str:
    if len(parts) == 1:
        return parts[0]
    _add(proto, "Concat", parts, [name], axis=1)
    return name


def _add(proto: onnx.ModelProto, operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
    """Append a node, named as the exporter names nodes."""
    taken = {node.name for node in proto.graph.node}
    name, number = f"{_PART}/{operator}", 0
    while name in taken:
        number += 1
        name = f"{_PART}/{operator}_{number}"
    proto.graph.node.append(helper.make_node(operator, inputs, outputs, name, **attributes))


def _constant(proto: onnx.ModelProto, name: str, value: list[int] | NDArray[np.float32] | np.float32) -> str:
    array = np.asarray(value, None if isinstance(value, (np.ndarray, np.generic)) else np.int64)
    proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return name
