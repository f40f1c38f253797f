"""Write a depth calibration into the ONNX file of a sensor graph, for servers that run nothing but the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.onnx_graph.edit import copy_of, rename_values
from m2h_deploy.onnx_graph.files import read_message

#: Name of the depth before the calibration, and the start of the names of new nodes.
_INNER = "uncalibrated/depth"


def write_calibrated(source: Path, target: Path, calibration: DepthCalibration) -> None:
    """Copy the ONNX file `source` to `target` with `calibration` behind its output `depth`.

    Weights in other files stay there: copy them beside `target` under their names.

    Raises:
        M2HError: `source` is not an ONNX file.
    """
    write_bytes(target, calibrated(read_message(source), calibration).SerializeToString())


def calibrated(proto: onnx.ModelProto, calibration: DepthCalibration) -> onnx.ModelProto:
    """Return a copy of a sensor graph whose output `depth` is calibrated; its type and shape stay the same.

    The float32 operations are those of `DepthCalibration.apply`, in its order. Millimeters (uint16) are calibrated in
    float32, rounded, and limited to 65535.
    """
    result = copy_of(proto)
    output = next(value for value in result.graph.output if value.name == "depth")
    kind = output.type.tensor_type.elem_type
    rename_values(result, {"depth": _INNER})
    output.name = "depth"
    steps: list[tuple[str, tuple[float, ...], dict[str, Any]]] = []
    unit = 1000 if kind == TensorProto.UINT16 else 1
    if kind != TensorProto.FLOAT:
        steps.append(("Cast", (), {"to": TensorProto.FLOAT}))
    steps.append(("Mul", (calibration.scale,), {}))
    if calibration.offset:
        steps.append(("Add", (calibration.offset * unit,), {}))
    if kind == TensorProto.UINT16:
        steps += [("Round", (), {}), ("Clip", (0, 65535), {})]
    elif calibration.offset < 0:
        steps.append(("Max", (0,), {}))
    if kind != TensorProto.FLOAT:
        steps.append(("Cast", (), {"to": kind}))
    value = _INNER
    for place, (operator, numbers, attributes) in enumerate(steps):
        name = f"{_INNER}/{operator}_{place}"
        constants = [
            numpy_helper.from_array(np.float32(number), f"{name}_{index}") for index, number in enumerate(numbers)
        ]
        inputs, value = [value, *(one.name for one in constants)], "depth" if place == len(steps) - 1 else f"{name}_out"
        result.graph.initializer.extend(constants)
        result.graph.node.append(helper.make_node(operator, inputs, [value], name, **attributes))
    return result
