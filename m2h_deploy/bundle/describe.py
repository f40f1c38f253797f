"""Describe a bundle; needs only the runtime's packages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import load_bundle


def describe_bundle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a bundle as JSON-compatible values: `manifest`, `bytes` and `sizes` of its files.

    Raises:
        M2HError: `path` is not a bundle or is damaged.
    """
    bundle = load_bundle(path)
    sizes = {name: (Path(path) / name).stat().st_size for name in bundle.manifest.files}
    return {
        "kind": "bundle",
        "path": str(path),
        "bytes": sum(sizes.values()),
        "sizes": sizes,
        "manifest": bundle.manifest.model_dump(mode="json"),
    }


def depth_words(manifest: dict[str, Any]) -> str:
    """Return the range of depth and its calibration as text."""
    near, far = manifest["depth_range"]
    calibration = manifest["depth_calibration"]
    text = "not calibrated" if calibration is None else f"calibrated: {DepthCalibration(**calibration).text}"
    return f"{near:g} to {far:g} m, {text}"


def facts(report: dict[str, Any]) -> dict[str, Any]:
    """Return the main facts of a `describe_bundle` report by name, for display."""
    manifest = report["manifest"]
    engine, image = manifest["engine"], manifest["input"]
    return {
        "path": report["path"],
        "variant": manifest["model"]["variant"],
        "engine": f"{engine['kind']} {engine['version']}",
        "precision": engine["precision"],
        "targets": ", ".join(engine["targets"]) or "any",
        "input": f"{image['batch'] or 'N'} x {image['height']} x {image['width']}, {image['dtype']} {image['layout']}",
        "outputs": ", ".join(f"{output['name']} ({output['unit']})" for output in manifest["outputs"]),
        "classes": len(manifest["classes"]["names"]),
        "depth": depth_words(manifest),
        **label_facts(manifest),
        "megabytes": report["bytes"] / 1e6,
    }


def label_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the label map and the labels' resolution of a manifest for display, if they are not the defaults."""
    found: dict[str, Any] = {}
    label_map = manifest["label_map"]
    if label_map is not None:
        taken = sum(len(group) for group in label_map["groups"])
        empty = sum(not group for group in label_map["groups"])
        network = len(label_map["network_classes"])
        found["label map"] = (
            f"{label_map['name']}: {len(label_map['groups'])} classes, made of {taken} of the network's {network}"
        ) + (f"; {empty} of them empty" if empty else "")
    if manifest["label_resolution"] != "network":
        found["labels"] = "logits resized to the image, then argmax"
    return found
