"""The check of a sensor graph: the same numbers as Python's preprocess, the plain graph and Python's postprocess."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort

from export.check import CheckReport, OutputDifference
from m2h_deploy.causes import failure
from m2h_deploy.numerics import judge, judge_labels, perturbed
from m2h_deploy.runtime.postprocess import Postprocess, Prediction
from m2h_deploy.runtime.preprocess import Normalization, Preprocess
from m2h_deploy.runtime.raw_pixels import bgr_to_nv12, nv12_to_bgr
from m2h_deploy.tasks import task_of

#: Units in the last place by which the two ways of preprocessing may differ.
_ULPS = 4

#: Half a millimeter, the rounding of depth in uint16, as a share of a meter.
_HALF_MILLIMETER = 0.5e-3


def check_sensor(
    plain: str | os.PathLike[str] | bytes, sensor: str | os.PathLike[str], *, images: Sequence[np.ndarray] = ()
) -> CheckReport:
    """Compare the sensor graph `sensor` with the graph `plain` that it was made from, on ONNX Runtime's CPU.

    A difference is judged by what rounding of the network's input changes in the plain graph's own results (see
    `m2h_deploy.numerics`). `images` are uint8 BGR of any size (a rendered room where there are none); noise is always
    added. Of labels, `max_error` and `mean_error` are the share of pixels that differ. Raises M2HError when a file
    cannot be loaded.
    """
    reference, session = _open(plain), _open(sensor)
    card = session.get_modelmeta().custom_metadata_map
    facts, config = json.loads(card["m2h.sensor"]), json.loads(card["m2h.config"])
    width, height = facts["network"]
    preprocess = Preprocess(Normalization.from_json(card["m2h.normalization"]), height, width)
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

        @cache
        def run_plain(index: int, tensor: np.ndarray = tensor, size: Any = seen.shape[:2]) -> Prediction:
            feed = {"image": perturbed(tensor, index, ulps=_ULPS)}
            outputs = dict(zip(tasks, reference.run(tasks, feed), strict=True))
            return postprocess({name: value[0] for name, value in outputs.items()}, *size)

        given = dict(zip(names, session.run(names, {"image": np.repeat(raw[None], repeats, axis=0)}), strict=True))
        for name in names:
            difference, failure = _compare(name, source, given[name][-1], run_plain)
            differences += [difference] if difference else []
            failures += [failure] if failure else []
    return CheckReport(tuple(failures), tuple(differences))


def _open(model: str | os.PathLike[str] | bytes) -> ort.InferenceSession:
    content = model if isinstance(model, bytes) else os.fspath(model)
    try:
        return ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        what = "the graph" if isinstance(model, bytes) else model
        raise failure(error, f"ONNX Runtime cannot load {what}") from None


def _pictures(images: Sequence[np.ndarray], camera: tuple[int, int]) -> dict[str, np.ndarray]:
    from m2h_deploy.data.rooms.render import render_room

    given = list(images) or [render_room(0, 0, height=240, width=320).image]
    names = [f"sensor, image {index + 1}" if images else "sensor, a room" for index in range(len(given))]
    resized = [np.asarray(cv2.resize(image, tuple(camera), interpolation=cv2.INTER_AREA)) for image in given]
    noise = np.random.default_rng(0).integers(0, 256, (camera[1], camera[0], 3), np.uint8)
    return {**dict(zip(names, resized, strict=True)), "sensor, noise": noise}


def _compare(
    name: str, source: str, value: np.ndarray, run_plain: Callable[[int], Prediction]
) -> tuple[OutputDifference | None, str | None]:
    """Compare one output with the plain graph's; `run_plain(k)` is its result on the k-th rounding of the input."""

    def reference(index: int) -> np.ndarray:
        return np.asarray(getattr(run_plain(index), task_of(name)))

    expected = reference(0)
    if value.shape != expected.shape:
        return None, f"{name} has shape {value.shape}, not {expected.shape}"
    if name == "labels":
        difference = judge_labels(value, expected, lambda index: reference(index + 1))
    else:
        millimeters = value.dtype == np.uint16
        found = value.astype(np.float32) / 1000 if millimeters else value
        difference = judge(
            _planes(found),
            _planes(expected),
            lambda index: _planes(reference(index + 1)),
            rounding=_HALF_MILLIMETER if millimeters else 0.0,
        )
    failure = None if difference.passed else f"{name} on {source} {difference.reason}"
    return OutputDifference(name, source, difference), failure


def _planes(array: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) to (1, C, H, W)."""
    return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)[None]
