"""Check that a sensor graph gives the results of Python's preprocess, the plain graph and Python's postprocess."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from export.check import CheckReport, OutputDifference, check_pictures
from m2h_deploy.numerics import judge, judge_labels, perturbed
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.runtime.postprocess import Postprocess, Prediction
from m2h_deploy.runtime.preprocess import Preprocess, bgr_to_nv12, nv12_to_bgr
from m2h_deploy.tasks import task_of

#: Units in the last place by which the two ways of preprocessing may differ.
_ULPS = 4

#: Half a millimeter, the rounding of depth in uint16, as a share of a meter.
_HALF_MILLIMETER = 0.5e-3


def check_sensor(plain: bytes, sensor: str | os.PathLike[str], *, images: Sequence[np.ndarray] = ()) -> CheckReport:
    """Compare the file `sensor` of a sensor graph with the graph `plain` that it was made from, on ONNX Runtime's CPU.

    A difference is judged by how much rounding of the network's input changes the plain graph's own results (see
    `m2h_deploy.numerics`). `images` are uint8 BGR of any size (a rendered room if there are none); noise is always
    added. For labels, `max_error` and `mean_error` are the share of pixels that differ.

    Raises:
        M2HError: A file cannot be loaded.
    """
    reference = cpu_session(plain, "the plain graph")
    engine = cpu_session(os.fspath(sensor), sensor)
    info = GraphInfo.parse(engine.get_modelmeta().custom_metadata_map, "the sensor graph")
    assert info.sensor is not None
    width, height = info.sensor.network
    preprocess = Preprocess(info.normalization, height, width)
    postprocess = Postprocess(info.depth_range, full_labels=info.label_resolution == "full")
    batch = reference.get_inputs()[0].shape[0]
    repeats = batch if isinstance(batch, int) else 1
    failures: list[str] = []
    differences: list[OutputDifference] = []
    for source, image in _pictures(images, info.sensor.camera).items():
        raw = bgr_to_nv12(image) if info.sensor.format == "nv12" else image
        seen = nv12_to_bgr(raw) if info.sensor.format == "nv12" else image
        tensor = np.repeat(preprocess(seen), repeats, axis=0)

        @cache
        def run_plain(index: int, tensor: np.ndarray = tensor, size: Any = seen.shape[:2]) -> Prediction:
            outputs = run_session(reference, perturbed(tensor, index, ulps=_ULPS))
            return postprocess({name: value[0] for name, value in outputs.items()}, *size)

        for name, values in run_session(engine, np.repeat(raw[None], repeats, axis=0)).items():
            difference, failure = _compare(name, source, values[-1], run_plain)
            differences += [difference] if difference else []
            failures += [failure] if failure else []
    return CheckReport(tuple(failures), tuple(differences))


def _pictures(images: Sequence[np.ndarray], camera: tuple[int, int]) -> dict[str, np.ndarray]:
    pictures = {
        f"sensor, {name}": np.asarray(cv2.resize(image, camera, interpolation=cv2.INTER_AREA))
        for name, image in check_pictures(images).items()
    }
    noise = np.random.default_rng(0).integers(0, 256, (camera[1], camera[0], 3), np.uint8)
    return {**pictures, "sensor, noise": noise}


def _compare(
    name: str, source: str, engine: np.ndarray, run_plain: Callable[[int], Prediction]
) -> tuple[OutputDifference | None, str | None]:
    """Compare one output with the plain graph's; `run_plain(k)` is its result on the k-th rounding of the input."""

    def run(index: int) -> np.ndarray:
        return np.asarray(getattr(run_plain(index), task_of(name)))

    reference = run(0)
    if engine.shape != reference.shape:
        return None, f"{name} has shape {engine.shape}, not {reference.shape}"
    if name == "labels":
        difference = judge_labels(engine, reference, lambda index: run(index + 1))
    else:
        millimeters = engine.dtype == np.uint16
        difference = judge(
            _planes(engine.astype(np.float32) / 1000 if millimeters else engine),
            _planes(reference),
            lambda index: _planes(run(index + 1)),
            rounding=_HALF_MILLIMETER if millimeters else 0.0,
        )
    failure = None if difference.passed else f"{name} on {source} {difference.reason}"
    return OutputDifference(name, source, difference), failure


def _planes(array: np.ndarray) -> np.ndarray:
    """Convert (H, W) or (H, W, C) to (1, C, H, W)."""
    return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)[None]
