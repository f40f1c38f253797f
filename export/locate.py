"""Locate the first diverging block between an engine and the checkpoint that it was made from."""

from __future__ import annotations

from typing import Any

from export.exporter import export_onnx
from export.raw_pixels import Sensor
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.manifest import Classes, LabelMap, Manifest
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.label_spaces.space import space_of
from m2h_deploy.model.checkpoint import load_checkpoint
from m2h_deploy.parity.locate import LocateResult, locate_in_bundle
from m2h_deploy.runtime.preprocess import normalization_of


def locate_difference(bundle: Bundle, reference: str) -> LocateResult:
    """Compare the engine of `bundle` with `reference` value by value.

    A checkpoint is exported with the options of the bundle's graph; a float32 ONNX file of the same export is used
    directly.

    Raises:
        M2HError: The reference does not exist, or the engine file is not ONNX.
    """
    if reference.endswith(".onnx"):
        return locate_in_bundle(bundle, reference)
    manifest, label_map = bundle.manifest, bundle.manifest.label_map
    with scratch_folder("m2h-locate-") as folder:
        path = export_onnx(
            load_checkpoint(reference),
            folder / "reference.onnx",
            height=manifest.network_input.height,
            width=manifest.network_input.width,
            batch=manifest.input.batch or 1,
            dynamic_batch=manifest.input.batch is None,
            opset=manifest.model.opset,
            tasks=manifest.tasks if manifest.sensor is None else None,
            windows=manifest.model.windows,  # type: ignore[arg-type]
            form=manifest.model.form,  # type: ignore[arg-type]
            normalization=normalization_of(manifest.network_input),
            classes=manifest.classes if label_map is None else _network_classes(label_map),
            sensor=_sensor_of(manifest),
            label_map=None if label_map is None else space_of(label_map, manifest.classes, str(bundle.path)),
            label_resolution=manifest.label_resolution,
        ).path
        return locate_in_bundle(bundle, path)


def _sensor_of(manifest: Manifest) -> Sensor | None:
    """Return the sensor that a bundle's graph was exported for, or None; outputs keep their names and types."""
    if manifest.sensor is None:
        return None
    outputs = {output.name: output.dtype for output in manifest.outputs}
    depth: Any = outputs.get("depth", "float32")
    return Sensor((manifest.input.width, manifest.input.height), manifest.sensor.format, tuple(outputs), depth)


def _network_classes(label_map: LabelMap) -> Classes:
    """Return the network's classes; nothing reads their colors."""
    names = label_map.network_classes
    return Classes(names=names, palette=((0, 0, 0),) * len(names))
