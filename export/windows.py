"""WMCA's window partition as named ONNX functions.

`m2h::WindowPartition` (attribute `window_size`) takes a map (N, C, H, W) to windows (N * M, p * p, C);
`m2h::WindowReverse` (attributes `window_size`, `height`, `width`) is its inverse. Both have a body of standard
operators, written for the graph's static sizes, which any runtime may inline: ONNX Runtime and TensorRT do so when they
load the file. A TensorRT plug-in of the same name can replace them; it finds all it needs in the attributes.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from export.deploy_form.wmca import window_grid

DOMAIN = "m2h"

#: An operator and its options; `constants` are its inputs after the first.
Step = tuple[str, dict[str, Any]]

_VERSION = 1


def symbolic_partition(x: Tensor, window_size: int) -> Tensor:
    """Replace `window_partition` while a model is traced: one m2h::WindowPartition node."""
    n, channels, height, width = x.shape
    rows, columns = window_grid(height, width, window_size)
    shape = (n * rows * columns, window_size * window_size, channels)
    return _node("WindowPartition", x, shape, window_size=window_size)


def symbolic_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Replace `window_reverse` while a model is traced: one m2h::WindowReverse node."""
    rows, columns = window_grid(height, width, window_size)
    shape = (windows.shape[0] // (rows * columns), windows.shape[2], height, width)
    return _node("WindowReverse", windows, shape, window_size=window_size, height=height, width=width)


def _node(name: str, x: Tensor, shape: tuple[int, ...], **attributes: Any) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", (x,), attributes, dtype=x.dtype, shape=shape, version=_VERSION)


def use_functions(model: nn.Module) -> None:
    """Make every WMCA layer of `model` trace its partition and reverse as named functions, in place."""
    module: Any
    for module in model.modules():
        if hasattr(module, "partition") and hasattr(module, "reverse"):
            module.partition = symbolic_partition
            module.reverse = symbolic_reverse


def add_function_bodies(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Define the functions that the graph of `proto` calls, in place; `shapes` is the static shape of every value."""
    bodies: dict[str, onnx.FunctionProto] = {}
    for node in proto.graph.node:
        if node.domain == DOMAIN:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            make = _partition_body if node.op_type == "WindowPartition" else _reverse_body
            body = make(shapes[node.input[0]], attributes, proto.opset_import)
            other = bodies.setdefault(node.op_type, body)
            if other != body:  # one body is enough for all calls: WMCA's layers all see maps of one size
                raise AssertionError(f"{node.op_type} is called at two sizes")
    proto.functions.extend(bodies.values())


def _partition_body(
    shape: tuple[int, ...], attributes: dict[str, int], opsets: list[onnx.OperatorSetIdProto]
) -> onnx.FunctionProto:
    _, channels, height, width = shape
    p = attributes["window_size"]
    rows, columns = window_grid(height, width, p)
    pads = [0, 0, 0, 0, 0, 0, rows * p - height, columns * p - width]
    steps: list[Step] = [
        ("Pad", {"constants": [pads]}),
        ("Reshape", {"constants": [[-1, channels, rows, p, columns, p]]}),
        ("Transpose", {"perm": [0, 2, 4, 3, 5, 1]}),
        ("Reshape", {"constants": [[-1, p * p, channels]]}),
    ]
    return _chain("WindowPartition", steps[0 if any(pads) else 1 :], ["window_size"], opsets)


def _reverse_body(
    shape: tuple[int, ...], attributes: dict[str, int], opsets: list[onnx.OperatorSetIdProto]
) -> onnx.FunctionProto:
    channels = shape[2]
    p, height, width = attributes["window_size"], attributes["height"], attributes["width"]
    rows, columns = window_grid(height, width, p)
    steps: list[Step] = [
        ("Reshape", {"constants": [[-1, rows, columns, p, p, channels]]}),
        ("Transpose", {"perm": [0, 5, 1, 3, 2, 4]}),
        ("Reshape", {"constants": [[-1, channels, rows * p, columns * p]]}),
        ("Slice", {"constants": [[0, 0], [height, width], [2, 3]]}),
    ]
    cropped = (rows * p, columns * p) != (height, width)
    names = ["window_size", "height", "width"]
    return _chain("WindowReverse", steps if cropped else steps[:-1], names, opsets)


def _chain(
    name: str,
    steps: list[Step],
    attributes: list[str],
    opsets: list[onnx.OperatorSetIdProto],
) -> onnx.FunctionProto:
    """Build a function of one input and one output that applies `steps` in turn."""
    nodes: list[onnx.NodeProto] = []
    value = "x"
    for index, (operator, options) in enumerate(steps):
        inputs = [value]
        for place, constant in enumerate(options.get("constants", [])):
            inputs.append(f"{operator}_{index}_{place}")
            nodes.append(helper.make_node("Constant", [], [inputs[-1]], value_ints=constant))
        value = "y" if index == len(steps) - 1 else f"{operator}_{index}"
        rest = {key: option for key, option in options.items() if key != "constants"}
        nodes.append(helper.make_node(operator, inputs, [value], name=f"{operator}_{index}", **rest))
    default = [opset for opset in opsets if opset.domain == ""]
    return helper.make_function(DOMAIN, name, ["x"], ["y"], nodes, default, attributes)
