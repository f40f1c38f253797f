"""Make the manifest of a bundle from the graph that its engine is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from m2h_deploy.bundle.consistency import inconsistency, record_fields
from m2h_deploy.bundle.manifest import (
    EngineInfo,
    InputSpec,
    Manifest,
    ModelInfo,
    OutputSpec,
    SelfTest,
    SensorInfo,
)
from m2h_deploy.errors import M2HError
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.onnx_graph.files import onnx_sha256
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import DTYPES, dims_of
from m2h_deploy.onnx_graph.precision import default_opset
from m2h_deploy.tasks import TABLE, task_of
from m2h_deploy.version import __version__


def make_manifest(
    proto: onnx.ModelProto, info: GraphInfo, source: Path, engine: EngineInfo, test: SelfTest, folder: Path
) -> Manifest:
    """Make the manifest of `engine` in `folder`, built from `proto`; `source` is the file that the user gave.

    Raises:
        M2HError: The graph does not match its own metadata.
    """
    manifest = Manifest(
        created_by=f"m2h-deploy {__version__}",
        model=ModelInfo(
            variant=info.variant,
            weights_sha256=info.weights_sha256,
            config=info.config,
            form=info.form,
            windows=info.windows,
            opset=default_opset(proto),
            onnx_sha256=onnx_sha256(source),
        ),
        input=input_spec(proto, info),
        sensor=_sensor_info(info),
        outputs=tuple(_output_spec(value, info) for value in proto.graph.output),
        depth_range=info.depth_range,
        classes=info.classes,
        label_map=info.label_map,
        label_resolution=info.label_resolution,
        engine=engine,
        lowering=info.lowered.lowering if info.lowered is not None else None,
        calibration=info.lowered.calibration if info.lowered is not None else None,
        self_test=test,
        files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    )
    problem = inconsistency(manifest)
    if problem is not None:
        raise M2HError(f"{source} was changed since its export: {problem}: export it again")
    return record_fields(manifest)


def input_spec(proto: onnx.ModelProto, info: GraphInfo) -> InputSpec:
    """Read the input specification from a graph that `check_interface` has accepted."""
    value = proto.graph.input[0]
    batch, *sides = dims_of(value)
    raw: dict[str, Any] = {}
    width, height = info.sensor.camera if info.sensor else (sides[-1], sides[-2])
    if info.sensor:
        nv12 = info.sensor.format == "nv12"
        raw = {"layout": "NV12" if nv12 else "NHWC", "color": "YCbCr" if nv12 else "BGR"}
    return InputSpec(
        name=value.name,
        dtype=_dtype(value),  # type: ignore[arg-type]
        batch=batch or None,
        height=height,
        width=width,
        mean=info.normalization.mean,
        std=info.normalization.std,
        **raw,
    )


def _dtype(value: onnx.ValueInfoProto) -> str:
    return DTYPES[value.type.tensor_type.elem_type]


def _sensor_info(info: GraphInfo) -> SensorInfo | None:
    if info.sensor is None:
        return None
    width, height = info.sensor.network
    return SensorInfo(format=info.sensor.format, network_height=height, network_width=width)


def _output_spec(value: onnx.ValueInfoProto, info: GraphInfo) -> OutputSpec:
    task = TABLE[task_of(value.name)]
    values = task.output if info.sensor is None else task.result
    dtype = _dtype(value)
    unit = "mm" if dtype == "uint16" else values.unit
    shape = tuple(side or None for side in dims_of(value))
    return OutputSpec(name=value.name, meaning=values.meaning, unit=unit, dtype=dtype, shape=shape)  # type: ignore[arg-type]
