"""Check an exported file on real and random input: first its names, then shapes, then values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from export.float64 import to_float64
from m2h_deploy.bundle.manifest import LabelMap
from m2h_deploy.causes import reason
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.model.network import M2H
from m2h_deploy.numerics import Difference, judge, perturbed
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.session import cpu_session
from m2h_deploy.runtime.preprocess import Normalization, Preprocess


@dataclass(frozen=True)
class OutputDifference:
    """Difference between one output and the reference on one input."""

    output: str
    input: str
    difference: Difference


@dataclass(frozen=True)
class CheckReport:
    """Result of a check; `failures` is empty when the file computes what the checkpoint computes."""

    failures: tuple[str, ...]
    differences: tuple[OutputDifference, ...] = ()

    @property
    def passed(self) -> bool:
        """True if the check found no failure."""
        return not self.failures

    def joined(self, other: CheckReport) -> CheckReport:
        """Return this report extended by the failures and differences of `other`."""
        return CheckReport(self.failures + other.failures, self.differences + other.differences)


class Reference:
    """A checkpoint's results for one input: exact, in float64, and in float32."""

    def __init__(self, name: str, image: NDArray[np.float32], model: M2H, label_map: LabelMap | None = None) -> None:
        """Evaluate `model` on `image`; with `label_map`, its logits are reduced as in the file."""
        self.name, self.image, self._label_map = name, image, label_map
        self.config = model.config
        self._model = model
        self.exact = self._run(to_float64(model), image.astype(np.float64))
        self._own: dict[int, dict[str, NDArray]] = {}

    def own(self, index: int) -> dict[str, NDArray]:
        """Return the `index`-th float32 result, by output name; see `m2h_deploy.numerics.judge`."""
        if index not in self._own:
            self._own[index] = self._run(self._model, perturbed(self.image, index))
        return self._own[index]

    def _run(self, model: M2H, image: NDArray) -> dict[str, NDArray]:
        with torch.inference_mode():
            outputs = {name: tensor.numpy() for name, tensor in model(torch.from_numpy(image)).items()}
        if self._label_map is not None:
            outputs["semantics"] = reduce_logits(outputs["semantics"], self._label_map)
        return outputs


def references_of(
    model: M2H,
    height: int,
    width: int,
    normalization: Normalization,
    *,
    images: Sequence[np.ndarray] = (),
    label_map: LabelMap | None = None,
) -> list[Reference]:
    """Evaluate `model` on `images` (uint8 BGR; a rendered room by default) and on noise."""
    preprocess = Preprocess(normalization, height, width)
    inputs = {name: preprocess(picture).copy() for name, picture in check_pictures(images).items()}
    inputs["noise"] = np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)
    return [Reference(name, image, model, label_map) for name, image in inputs.items()]


def check_pictures(images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return named pictures for the check: `images` (uint8 BGR, H x W x 3), or one rendered room by default."""
    from m2h_deploy.data.rooms.render import render_room

    if not images:
        return {"a room": render_room(0, 0, height=240, width=320).image}
    return {f"image {index + 1}": image for index, image in enumerate(images)}


def check_export(model: M2H, path: str | os.PathLike[str], *, images: Sequence[np.ndarray] = ()) -> CheckReport:
    """Compare an exported file with `model` on `images` (uint8 BGR; a rendered room by default) and on noise.

    The model is evaluated in float64, and the file's error is judged by the error that the model has in float32 on the
    same input (see `m2h_deploy.numerics`). Only the outputs that the file has are compared. A dynamic batch size is
    checked with two different frames, which must give the same results in one batch as each does alone.

    Raises:
        M2HError: The file cannot be loaded.
    """
    session = cpu_session(os.fspath(path), path)
    _, _, height, width = session.get_inputs()[0].shape
    info = GraphInfo.parse(session.get_modelmeta().custom_metadata_map, path)
    references = references_of(model, height, width, info.normalization, images=images, label_map=info.label_map)
    return check_against(references, path)


def check_against(references: Sequence[Reference], path: str | os.PathLike[str]) -> CheckReport:
    """Compare an exported file with the results of its checkpoint; see `check_export`."""
    session = cpu_session(os.fspath(path), path)
    info = GraphInfo.parse(session.get_modelmeta().custom_metadata_map, path)
    tasks = list(info.tasks)
    failures = _name_failures(session, tasks)
    if info.config != json.loads(json.dumps(references[0].config.to_dict())):
        failures.append("m2h.config in the metadata is not that of the checkpoint")
    if failures:
        return CheckReport(tuple(failures))
    batch = session.get_inputs()[0].shape[0]
    groups = [(r.name, [r] * batch if isinstance(batch, int) else [r]) for r in references]
    if not isinstance(batch, int):
        groups.append(("both as one batch", list(references[-2:])))
    failures, differences = [], []
    for source, group in groups:
        tensor = np.concatenate([entry.image for entry in group])
        try:
            engine = dict(zip(tasks, session.run(tasks, {"image": tensor}), strict=True))
        except Exception as error:  # ONNX Runtime raises its own unexported types
            failures.append(f"ONNX Runtime fails on {source}: {reason(error)}")
            continue
        for task in tasks:
            reference = np.concatenate([entry.exact[task] for entry in group])
            if engine[task].shape != reference.shape:
                failures.append(f"{task} has shape {engine[task].shape}, the checkpoint gives {reference.shape}")
                continue
            difference = judge(engine[task], reference, _own(group, task))
            differences.append(OutputDifference(task, source, difference))
            if not difference.passed:
                failures.append(f"{task} on {source} {difference.reason}")
    return CheckReport(tuple(failures), tuple(differences))


def _own(group: Sequence[Reference], task: str) -> Callable[[int], NDArray]:
    return lambda index: np.concatenate([reference.own(index)[task] for reference in group])


def _name_failures(session: ort.InferenceSession, tasks: list[str]) -> list[str]:
    inputs = [node.name for node in session.get_inputs()]
    outputs = [node.name for node in session.get_outputs()]
    failures = []
    if inputs != ["image"]:
        failures.append(f"inputs are {inputs}, expected ['image']")
    if outputs != tasks:
        failures.append(f"outputs are {outputs}, expected {tasks}")
    return failures
