"""The check after export: names, then shapes, then values, on real and random input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch

from m2h_deploy.errors import M2HError
from m2h_deploy.model.network import M2H
from m2h_deploy.preprocess import Normalisation, Preprocess

#: Least deviation as a share of the root mean square: of an output that does not vary, such as the depth of untrained
#: weights at the end of its range, only rounding is left, which goes with the size of the values.
_LEAST_DEVIATION = 1e-3

#: Largest difference allowed, as a share of the output's standard deviation. Float32 differs from float64 by up to
#: 4e-4 of it on this network, so a graph that computes the same function stays well below.
MAX_ERROR = 1e-2
MIN_PSNR = 60.0


@dataclass(frozen=True)
class OutputDifference:
    """How far one output is from the reference on one input. Errors are shares of the reference's deviation."""

    output: str
    input: str
    max_error: float
    mean_error: float
    psnr: float
    """Peak signal-to-noise ratio in dB: 20 log10(range of the reference / root mean squared error)."""
    limit: float = MAX_ERROR
    """Largest `max_error` allowed."""

    @property
    def passed(self) -> bool:
        return self.max_error <= self.limit and self.psnr >= MIN_PSNR


@dataclass(frozen=True)
class CheckReport:
    """What was compared; `failures` is empty when the file computes what the checkpoint computes."""

    failures: tuple[str, ...]
    differences: tuple[OutputDifference, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.failures


def compare(output: str, source: str, value: np.ndarray, reference: np.ndarray) -> OutputDifference:
    """Difference of two arrays of one shape."""
    reference = reference.astype(np.float64)
    error = np.abs(value.astype(np.float64) - reference)
    size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    deviation = max(float(reference.std()), _LEAST_DEVIATION * size) or 1.0
    rmse = float(np.sqrt(np.mean(error**2)))
    span = max(float(np.ptp(reference)), deviation)
    psnr = float(20 * np.log10(span / rmse)) if rmse > 0 else float("inf")
    return OutputDifference(output, source, float(error.max()) / deviation, float(error.mean()) / deviation, psnr)


def check_export(
    model: M2H, path: str | os.PathLike[str], *, images: Sequence[np.ndarray] = (), seed: int = 0
) -> CheckReport:
    """Compare an exported file with `model` on `images` (uint8 BGR; a rendered room by default) and on noise.

    The outputs that the file has are compared; a free batch size is tried with two different frames, which must
    give what each gives alone. Raises M2HError when the file cannot be loaded at all.
    """
    try:
        session = ort.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise M2HError(f"ONNX Runtime cannot load {path}: {str(error).splitlines()[0]}") from None
    metadata = session.get_modelmeta().custom_metadata_map
    tasks = metadata["m2h.tasks"].split(",")
    failures = _name_failures(session, tasks)
    if failures:
        return CheckReport(tuple(failures))
    batch, _, height, width = session.get_inputs()[0].shape
    normalization = Normalisation.from_json(metadata["m2h.normalization"])
    inputs = _inputs(images, normalization, height, width, seed)
    if isinstance(batch, int):
        inputs = {name: np.repeat(image, batch, axis=0) for name, image in inputs.items()}
    else:
        inputs["both as one batch"] = np.concatenate(list(inputs.values())[-2:])
    failures, differences = [], []
    for source, image in inputs.items():
        try:
            values = dict(zip(tasks, session.run(tasks, {"image": image}), strict=True))
        except Exception as error:  # as above
            failures.append(f"ONNX Runtime fails on {source}: {str(error).splitlines()[0]}")
            continue
        with torch.inference_mode():
            reference = {name: tensor.numpy() for name, tensor in model(torch.from_numpy(image)).items()}
        for task in tasks:
            if values[task].shape != reference[task].shape:
                failures.append(f"{task} has shape {values[task].shape}, the checkpoint gives {reference[task].shape}")
                continue
            difference = compare(task, source, values[task], reference[task])
            differences.append(difference)
            if not difference.passed:
                share = f"{difference.max_error:.1e} of its deviation ({difference.psnr:.0f} dB)"
                failures.append(f"{task} on {source} differs by {share}")
    return CheckReport(tuple(failures), tuple(differences))


def _name_failures(session: ort.InferenceSession, tasks: list[str]) -> list[str]:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    failures = []
    if inputs != ["image"]:
        failures.append(f"inputs are {inputs}, expected ['image']")
    if outputs != tasks:
        failures.append(f"outputs are {outputs}, expected {tasks}")
    return failures


def _inputs(
    images: Sequence[np.ndarray], normalization: Normalisation, height: int, width: int, seed: int
) -> dict[str, np.ndarray]:
    from m2h_deploy.data.rooms import render_room

    pictures = list(images) or [render_room(seed, 0, height=240, width=320).image]
    preprocess = Preprocess(normalization, height, width)
    named = {f"image {index + 1}" if images else "a room": preprocess(p).copy() for index, p in enumerate(pictures)}
    noise = np.random.default_rng(seed).standard_normal((1, 3, height, width), dtype=np.float32)
    return {**named, "noise": noise}
