"""Make the manifest of a bundle from the graph that its engine is built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from engines.lowered import Lowered
from m2h_deploy.bundle.consistency import inconsistency, record_fields
from m2h_deploy.bundle.manifest import (
    EngineInfo,
    InputSpec,
    Manifest,
    ModelInfo,
    OutputSpec,
    SelfTest,
    SensorInfo,
    file_sha256,
)
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.files import onnx_sha256
from m2h_deploy.onnx_graph.info import ModelCard, default_opset
from m2h_deploy.onnx_graph.interface import DTYPES
from m2h_deploy.tasks import TABLE, task_of
from m2h_deploy.version import __version__


def make_manifest(
    proto: onnx.ModelProto,
    card: ModelCard,
    source: Path,
    info: EngineInfo,
    test: SelfTest,
    lowered: Lowered | None,
    folder: Path,
) -> Manifest:
    """The manifest of the engine `info` in `folder`, built from `proto`; `source` is the file that the user gave.

    Raises M2HError where the graph does not fit what it says about itself.
    """
    manifest = Manifest(
        created_by=f"m2h-deploy {__version__}",
        model=ModelInfo(
            variant=card.variant,
            weights_sha256=card.weights_sha256,
            config=card.config,
            form=card.form,
            windows=card.windows,
            opset=default_opset(proto),
            onnx_sha256=onnx_sha256(source),
        ),
        input=input_spec(proto, card),
        sensor=_sensor_info(card),
        outputs=tuple(_output_spec(value, card) for value in proto.graph.output),
        depth_range=(card.config["min_depth"], card.config["max_depth"]),
        classes=card.classes,
        engine=info,
        lowering=lowered.lowering if lowered is not None else None,
        calibration=lowered.calibration if lowered is not None else None,
        self_test=test,
        files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    )
    problem = inconsistency(manifest)
    if problem is not None:
        raise M2HError(f"{source} was changed since its export: {problem}: export it again")
    return record_fields(manifest)


def input_spec(proto: onnx.ModelProto, card: ModelCard) -> InputSpec:
    """Read the input specification off a graph that `check_interface` has accepted."""
    value = proto.graph.input[0]
    batch, *sides = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    raw: dict[str, Any] = {}
    width, height = card.sensor.camera if card.sensor else (sides[-1], sides[-2])
    if card.sensor:
        nv12 = card.sensor.format == "nv12"
        raw = {"layout": "NV12" if nv12 else "NHWC", "color": "YCbCr" if nv12 else "BGR"}
    return InputSpec(
        name=value.name,
        dtype=_dtype(value),  # type: ignore[arg-type]
        batch=batch or None,
        height=height,
        width=width,
        mean=card.normalization.mean,
        std=card.normalization.std,
        **raw,
    )


def _dtype(value: onnx.ValueInfoProto) -> str:
    return DTYPES[value.type.tensor_type.elem_type]


def _sensor_info(card: ModelCard) -> SensorInfo | None:
    if card.sensor is None:
        return None
    width, height = card.sensor.network
    return SensorInfo(format=card.sensor.format, network_height=height, network_width=width)


def _output_spec(value: onnx.ValueInfoProto, card: ModelCard) -> OutputSpec:
    task = TABLE[task_of(value.name)]
    values = task.output if card.sensor is None else task.result
    dtype = _dtype(value)
    unit = "mm" if dtype == "uint16" else values.unit
    shape = tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
    return OutputSpec(name=value.name, meaning=values.meaning, unit=unit, dtype=dtype, shape=shape)  # type: ignore[arg-type]
