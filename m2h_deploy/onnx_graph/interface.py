"""Check the inputs and outputs of an exported graph before a build: another tool may have changed them."""

from __future__ import annotations

from pathlib import Path

import onnx

from m2h_deploy.bundle.manifest import LARGEST_SIDE
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.tasks import RESULTS, TASKS

#: Types of inputs and outputs, with their names in a manifest.
DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16",
}


def dims_of(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the shape of a value; 0 stands for a dynamic dimension."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def check_interface(proto: onnx.ModelProto, info: GraphInfo, path: Path) -> None:
    """Check that the inputs and outputs of a graph are those that m2h-deploy export gives it.

    Shapes of outputs are left to the manifest's own check.

    Raises:
        M2HError: The graph has other inputs or outputs, or a dynamic height or width; names the file and the problem.
    """
    problem = _problem(proto, info)
    if problem is not None:
        raise M2HError(f"{path} was changed since its export: {problem}: export it again")


def _problem(proto: onnx.ModelProto, info: GraphInfo) -> str | None:
    inputs = [value.name for value in proto.graph.input]
    if len(inputs) != 1:
        return f"it takes {len(inputs)} inputs ({', '.join(inputs)}), expected one image"
    problem = _input_problem(proto.graph.input[0], info)
    if problem is not None:
        return problem
    known = TASKS if info.sensor is None else tuple(RESULTS)
    names = [value.name for value in proto.graph.output]
    foreign = [name for name in names if name not in known]
    if foreign or not names or len(set(names)) < len(names):
        return f"it gives {', '.join(foreign or names) or 'nothing'}, expected {', '.join(known)}, each at most once"
    if info.lowered is not None and info.lowered.self_test.outputs.keys() != set(names):
        return "it has other outputs than its self-test"
    made = {name for node in proto.graph.node for name in node.output} | set(inputs)
    for value in proto.graph.output:
        kind = value.type.tensor_type.elem_type
        if value.name not in made:
            return f"no node computes {value.name}"
        if kind not in DTYPES:
            return f"{value.name} is {onnx.TensorProto.DataType.Name(kind).lower()}"
    return None


def _input_problem(value: onnx.ValueInfoProto, info: GraphInfo) -> str | None:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    expected = floats if info.sensor is None else (onnx.TensorProto.UINT8,)
    kind = value.type.tensor_type.elem_type
    if kind not in expected:
        words = "floating-point of 16 or 32 bits" if info.sensor is None else "uint8"
        return f"its input {value.name} is {onnx.TensorProto.DataType.Name(kind).lower()}, expected {words}"
    shape = ["free" if index and not side else side for index, side in enumerate(dims_of(value))]
    if info.sensor is None:
        form, fits = "N x 3 x height x width", len(shape) == 4 and shape[1] == 3
    elif info.sensor.format == "nv12":
        width, height = info.sensor.camera
        form, fits = f"N x {height * 3 // 2} x {width}", shape[1:] == [height * 3 // 2, width]
    else:
        width, height = info.sensor.camera
        form, fits = f"N x {height} x {width} x 3", shape[1:] == [height, width, 3]
    if not fits or "free" in shape or max(shape[1:]) > LARGEST_SIDE:  # type: ignore[type-var, operator]
        given = " x ".join(["N", *map(str, shape[1:])])
        return f"its input {value.name} is {given}, expected {form}, all but N fixed and at most {LARGEST_SIDE}"
    return None
