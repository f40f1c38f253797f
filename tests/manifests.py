"""Bundles with changed manifests, for tests that read a manifest and do not run its engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.bundle.manifest import OutputSpec, SensorInfo


def changed(path: Path, out: Path, **changes: Any) -> Path:
    """Copy a bundle and change manifest fields of the copy. Its engine does not match them: do not run it."""
    shutil.copytree(path, out)
    write_manifest(out, load_bundle(out).manifest.model_copy(update={"self_test": None, **changes}))
    load_bundle(out)
    return out


def as_sensor_bundle(
    path: Path, out: Path, kind: str = "onnxruntime", batch: int | None = None, **options: object
) -> Path:
    """Copy a plain bundle and make the copy's manifest describe a sensor graph for a 64 x 48 camera."""
    manifest = load_bundle(path).manifest
    sides: dict[str, tuple[int | None, ...]] = dict.fromkeys(("depth", "labels", "edges"), (batch, 48, 64))
    outputs = tuple(
        OutputSpec(name=name, meaning=name, unit="1", dtype="uint8" if name == "labels" else "float32", shape=shape)
        for name, shape in {**sides, "normals": (batch, 48, 64, 3)}.items()
    )
    raw = {"dtype": "uint8", "layout": "NHWC", "color": "BGR", "batch": batch, "height": 48, "width": 64}
    return changed(
        path,
        out,
        sensor=SensorInfo(format="uint8", network_height=112, network_width=140),
        input=manifest.input.model_copy(update=raw),
        outputs=outputs,
        engine=manifest.engine.model_copy(update={"kind": kind, "options": options}),
    )
