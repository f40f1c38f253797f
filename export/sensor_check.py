"""The check of a sensor graph: the same numbers as Python's preprocess, the plain graph and Python's postprocess."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import cv2
import numpy as np
import onnxruntime as ort

from export.check import CheckReport, OutputDifference, compare
from m2h_deploy.errors import M2HError
from m2h_deploy.postprocess import Postprocess, Prediction
from m2h_deploy.preprocess import Normalisation, Preprocess
from m2h_deploy.sensor import bgr_to_nv12, nv12_to_bgr

#: Share of pixels that may have another label, and largest difference of depth: in metres, or as a share of its
#: deviation where that is more (a network of random weights answers float32's rounding with as much).
MAX_LABELS = 1e-3
MAX_DEPTH = 1e-3


def check_sensor(
    plain: str | os.PathLike[str] | bytes, sensor: str | os.PathLike[str], *, images: Sequence[np.ndarray] = ()
) -> CheckReport:
    """Compare the sensor graph `sensor` with the graph `plain` that it was made from, on ONNX Runtime's CPU.

    `images` are uint8 BGR of any size (a rendered room where there are none); noise is always added. Of labels,
    `max_error` and `mean_error` are the share of pixels that differ. Raises M2HError when a file cannot be loaded.
    """
    reference, session = _open(plain), _open(sensor)
    card = session.get_modelmeta().custom_metadata_map
    facts, config = json.loads(card["m2h.sensor"]), json.loads(card["m2h.config"])
    width, height = facts["network"]
    preprocess = Preprocess(Normalisation.from_json(card["m2h.normalization"]), height, width)
    postprocess = Postprocess((config["min_depth"], config["max_depth"]))
    batch = reference.get_inputs()[0].shape[0]
    repeats = batch if isinstance(batch, int) else 1
    names = [node.name for node in session.get_outputs()]
    tasks = [node.name for node in reference.get_outputs()]
    failures: list[str] = []
    differences: list[OutputDifference] = []
    for source, image in _pictures(images, facts["camera"]).items():
        raw = bgr_to_nv12(image) if facts["format"] == "nv12" else image
        seen = nv12_to_bgr(raw) if facts["format"] == "nv12" else image
        tensor = np.repeat(preprocess(seen), repeats, axis=0)
        outputs = dict(zip(tasks, reference.run(tasks, {"image": tensor}), strict=True))
        expected = postprocess({name: value[0] for name, value in outputs.items()}, *seen.shape[:2])
        given = dict(zip(names, session.run(names, {"image": np.repeat(raw[None], repeats, axis=0)}), strict=True))
        for name in names:
            difference, failure = _compare(name, source, given[name][-1], expected)
            differences.append(difference)
            failures += [failure] if failure else []
    return CheckReport(tuple(failures), tuple(differences))


def _open(model: str | os.PathLike[str] | bytes) -> ort.InferenceSession:
    content = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        what = "the graph" if isinstance(model, bytes) else model
        raise M2HError(f"ONNX Runtime cannot load {what}: {str(error).splitlines()[0]}") from None


def _pictures(images: Sequence[np.ndarray], camera: tuple[int, int]) -> dict[str, np.ndarray]:
    from m2h_deploy.data.rooms import render_room

    given = list(images) or [render_room(0, 0, height=240, width=320).image]
    names = [f"sensor, image {index + 1}" if images else "sensor, a room" for index in range(len(given))]
    resized = [np.asarray(cv2.resize(image, tuple(camera), interpolation=cv2.INTER_AREA)) for image in given]
    noise = np.random.default_rng(0).integers(0, 256, (camera[1], camera[0], 3), np.uint8)
    return {**dict(zip(names, resized, strict=True)), "sensor, noise": noise}


def _compare(name: str, source: str, value: np.ndarray, expected: Prediction) -> tuple[OutputDifference, str | None]:
    if name == "labels":
        assert expected.semantics is not None
        share = float(np.mean(value != expected.semantics))
        difference = OutputDifference(name, source, share, share, float("inf"), MAX_LABELS)
        return difference, None if difference.passed else f"{share:.2%} of the labels differ on {source}"
    reference = getattr(expected, name)
    if value.dtype == np.uint16:  # millimetres: half of one is rounding
        value = value.astype(np.float32) / 1000
    if value.shape != reference.shape:
        return compare(name, source, np.zeros(1), np.ones(1)), f"{name} has shape {value.shape}, not {reference.shape}"
    difference = compare(name, source, value, reference)
    worst = float(np.abs(value - reference).max())
    if name == "depth":
        limit = MAX_DEPTH * max(1.0, float(reference.std()))
        return difference, f"depth differs by {worst:.1e} m on {source}" if not worst <= limit else None
    return difference, None if difference.passed else f"{name} differs by up to {worst:.1e} on {source}"
