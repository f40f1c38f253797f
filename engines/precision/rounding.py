"""Predict the error of a precision: the graph with every value rounded, on ONNX Runtime's CPU.

An engine in FP16 or bfloat16 multiplies rounded numbers and accumulates in float32, so rounding every result of the
float32 graph predicts its error (measured on OpenVINO: within a factor of three, in both types).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from m2h_deploy.onnx_graph.edit import copy_of, replace_nodes

Rounding = Literal["f16", "bf16"]

_TYPES = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def round_values(proto: onnx.ModelProto, to: Rounding) -> onnx.ModelProto:
    """Return `proto` with its weights and every floating-point result except the outputs rounded to FP16 or bfloat16.

    Expects a graph with the types of all values (`onnx.shape_inference`) and without local functions.
    """
    result = copy_of(proto)
    graph = result.graph
    outputs = {value.name for value in graph.output}
    kinds = {v.name: v.type.tensor_type.elem_type for v in graph.value_info if v.name not in outputs}
    floats = {name: kind for name, kind in kinds.items() if kind in (TensorProto.FLOAT, TensorProto.FLOAT16)}
    for tensor in graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            values = numpy_helper.to_array(tensor)
            rounded = _rounded(values.astype(np.float32), to).astype(values.dtype)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in floats:
                exact, half = f"{name}/exact", f"{name}/{to}"
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=_TYPES[to]))
                nodes.append(helper.make_node("Cast", [half], [name], to=floats[name]))
    replace_nodes(result, nodes)
    del graph.value_info[:]
    return result


def _rounded(values: NDArray[np.float32], to: Rounding) -> NDArray[np.float32]:
    if to == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    nearest_even = bits + 0x7FFF + ((bits >> 16) & 1)
    return (nearest_even & 0xFFFF0000).astype(np.uint32).view(np.float32).reshape(values.shape)
