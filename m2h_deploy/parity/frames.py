"""Measure single frames on engine and reference: a few vectors per frame, measured anywhere and added up in order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.data.classes import check_classes
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import printable
from m2h_deploy.parity.pictures import difference
from m2h_deploy.parity.reference import Outputs, Reference
from m2h_deploy.parity.tasks import Against, State, TaskComparison
from m2h_deploy.parity.tensors import TensorComparison, tensor_sums
from m2h_deploy.runtime.postprocess import Prediction, reference_postprocess
from m2h_deploy.runtime.preprocess import bgr_to_nv12, nv12_to_bgr, preprocess_for
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.tasks import TABLE


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """Measurements of one frame; all results of `verify` except pictures are computed from these, in frame order."""

    name: str
    tensors: dict[str, State]
    """By output, see `tensor_sums`."""
    tasks: dict[str, tuple[State, ...]]
    """By task: metric states of the reference and of the engine, for depth also that of a prediction of zeros."""
    differences: dict[str, float]
    """By task, see `pictures.difference`; selects the frames to draw."""
    derived: frozenset[str]


@dataclass(frozen=True, eq=False)
class BothSides:
    """Results of reference and engine for one frame."""

    reference: Prediction
    engine: Prediction
    reference_outputs: Outputs
    """Values to compare, by output."""
    engine_outputs: Outputs
    nonfinite: dict[str, int]
    """Number of non-finite values of the engine by output; they are replaced by 0."""


def choose_targets(manifest: Manifest, frame: Frame, source: Dataset) -> dict[str, Against]:
    """Choose the ground truth of each task: labels if the first frame of `source` has them, else the reference.

    Raises:
        M2HError: The classes of the data are not the engine's.
    """
    if frame.semantics is not None and "semantics" in manifest.tasks:
        check_classes(source.class_names, manifest.classes)
    return {task: "reference" if getattr(frame, task) is None else "labels" for task in manifest.tasks}


class Measurer:
    """Run frames through reference and engine, and measure each frame separately."""

    def __init__(
        self,
        runtime: Runtime,
        reference: Reference,
        targets: dict[str, Against],
        known: dict[tuple[str, str], State] | None = None,
    ) -> None:
        """Compare `runtime` with `reference`; `known` keeps the reference's states by task and image, to use again."""
        self._known = known
        self._manifest = runtime.manifest
        sides = _Plain if runtime.manifest.sensor is None else _Sensor
        self._sides = sides(runtime, reference)
        classes = runtime.manifest.classes
        self._tasks = [TaskComparison(task, against, classes) for task, against in targets.items()]

    def both(self, frame: Frame) -> BothSides:
        """Run one frame through reference and engine."""
        return self._sides.both(frame)

    def record(self, frame: Frame, both: BothSides) -> FrameRecord:
        """Measure one frame. Raises M2HError, naming the frame, if its labels do not fit its image."""
        known = {} if self._known is None else self._known
        digest = "" if self._known is None else hashlib.sha256(frame.image.tobytes()).hexdigest()
        states = {}
        for task in self._tasks:
            key = task.task, digest
            states[task.task] = task.states(frame, both.reference, both.engine, known.get(key))
            known[key] = states[task.task][0]
        return FrameRecord(
            printable(frame.name),
            {name: tensor_sums(name, both.reference_outputs[name], both.engine_outputs[name], both.nonfinite[name])
             for name in compared_outputs(self._manifest)},
            states,
            {task.task: difference(task.task, both.reference, both.engine) for task in self._tasks},
            frame.derived,
        )  # fmt: skip


def compared_outputs(manifest: Manifest) -> list[str]:
    """Return the outputs that are compared value by value; labels of a sensor graph are compared by metrics only."""
    return [task for task in manifest.tasks if manifest.sensor is None or task != "semantics"]


def output_unit(manifest: Manifest, name: str) -> str:
    """Return the quantity of a compared output: a sensor graph ends in probabilities, others in logits."""
    return (TABLE[name].output if manifest.sensor is None else TABLE[name].result).quantity


@dataclass
class Comparison:
    """Sums over all frames."""

    tensors: list[TensorComparison]
    tasks: list[TaskComparison]
    derived: set[str]
    frames: int = 0

    @classmethod
    def of(cls, manifest: Manifest, targets: dict[str, Against], records: Iterable[FrameRecord]) -> Comparison:
        """Add up `records`. The same order gives bit-identical sums, wherever the frames were measured."""
        tasks = [TaskComparison(task, against, manifest.classes) for task, against in targets.items()]
        tensors = [TensorComparison(name, output_unit(manifest, name)) for name in compared_outputs(manifest)]
        self = cls(tensors, tasks, set())
        for record in records:
            if not self.frames:
                for task in tasks:
                    task.derived = task.task in record.derived
            self.frames += 1
            self.derived |= record.derived
            for tensor in self.tensors:
                tensor.add(record.tensors[tensor.output])
            for task in tasks:
                task.add(record.tasks[task.task])
        return self


class _Plain:
    """Compare the network's outputs on the same preprocessed tensor, and the postprocessed results."""

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime, self._reference = runtime, reference

    def both(self, frame: Frame) -> BothSides:
        runtime = self._runtime
        tensor = runtime.preprocess(frame.image)
        outputs = self._reference.run(tensor)
        reference_outputs = _finite_reference({task: outputs[task][0] for task in runtime.manifest.tasks}, frame)
        batch = runtime.manifest.input.batch or 1
        raw = runtime.backend.run(np.repeat(tensor, batch, axis=0) if batch > 1 else tensor)
        engine_outputs, nonfinite = _finite({name: np.asarray(value[0], np.float32) for name, value in raw.items()})
        reference = runtime.postprocess(reference_outputs, frame.height, frame.width)
        engine = runtime.postprocess(engine_outputs, frame.height, frame.width)
        return BothSides(reference, engine, reference_outputs, engine_outputs, nonfinite)


class _Sensor:
    """Compare the final results of a sensor graph with the reference between Python's preprocess and postprocess.

    If the graph takes NV12, the reference gets the image after conversion to NV12 and back.
    """

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime, self._reference = runtime, reference
        self._preprocess = preprocess_for(runtime.manifest.network_input)
        self._postprocess = reference_postprocess(runtime.manifest)

    def both(self, frame: Frame) -> BothSides:
        manifest = self._runtime.manifest
        image = frame.image
        engine = self._runtime(image)
        if manifest.input.layout == "NV12":
            image = nv12_to_bgr(bgr_to_nv12(image))
        outputs = self._reference.run(self._preprocess(image))
        finite = _finite_reference({task: outputs[task][0] for task in manifest.tasks}, frame)
        reference = self._postprocess(finite, frame.height, frame.width)
        engine_outputs, nonfinite = _finite(_maps(engine))
        engine = dataclasses.replace(engine, **_arrays(engine_outputs))
        return BothSides(reference, engine, _maps(reference), engine_outputs, nonfinite)


def _finite_reference(outputs: Outputs, frame: Frame) -> Outputs:
    """Return `outputs`. Raises M2HError if the reference gives NaN or infinity, which prevents any comparison."""
    bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
    if bad:
        raise M2HError(
            f"the reference gives NaN or infinity in {', '.join(bad)} on {frame.name}: its weights are damaged"
        )
    return outputs


def _maps(prediction: Prediction) -> Outputs:
    """Return depth, normals and edges of a prediction with the channels first."""
    maps = {"depth": prediction.depth, "edges": prediction.edges}
    found = {name: value[None] for name, value in maps.items() if value is not None}
    if prediction.normals is not None:
        found["normals"] = np.ascontiguousarray(prediction.normals.transpose(2, 0, 1))
    return found


def _arrays(maps: Outputs) -> dict[str, Any]:
    """Invert `_maps`: return the arrays of a prediction."""
    return {
        name: np.ascontiguousarray(value.transpose(1, 2, 0)) if name == "normals" else value[0]
        for name, value in maps.items()
    }


def _finite(outputs: Outputs) -> tuple[Outputs, dict[str, int]]:
    """Replace NaN and infinity by 0, and count them by output.

    A parity run must detect FP16 that overflows, so overflows are counted and the rest is measured.
    """
    bad = {name: int(np.count_nonzero(~np.isfinite(value))) for name, value in outputs.items()}
    finite = {n: np.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0) if bad[n] else v for n, v in outputs.items()}
    return finite, bad
