"""What one frame tells about an engine beside its reference: a few vectors, measured anywhere, added up in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import printable
from m2h_deploy.parity.pictures import difference
from m2h_deploy.parity.reference import Outputs, Reference
from m2h_deploy.parity.tasks import Against, State, TaskComparison, check_classes
from m2h_deploy.parity.tensors import TensorComparison, tensor_sums
from m2h_deploy.runtime.postprocess import Postprocess, Prediction
from m2h_deploy.runtime.preprocess import bgr_to_nv12, nv12_to_bgr, preprocess_for
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.tasks import TABLE


@dataclass(frozen=True, eq=False)
class FrameRecord:
    """The measurements of one frame; everything `verify` reports but pictures follows from these, in frame order."""

    name: str
    tensors: dict[str, State]
    """By output, see `tensor_sums`."""
    tasks: dict[str, tuple[State, ...]]
    """By task: metric states of the reference and of the engine, and of depth that of a prediction of zeros."""
    differences: dict[str, float]
    """By task, see `pictures.difference`: which frames are worth a picture."""
    derived: frozenset[str]


@dataclass(frozen=True, eq=False)
class BothSides:
    """One frame through reference and engine."""

    reference: Prediction
    engine: Prediction
    reference_outputs: Outputs
    """The values to compare."""
    engine_outputs: Outputs
    nonfinite: dict[str, int]
    """How many of the engine's were not finite; they are 0 here."""


def choose_targets(manifest: Manifest, frame: Frame, source: Dataset) -> dict[str, Against]:
    """What each task of the engine is measured against: the labels where the first frame of `source` has them.

    Raises M2HError when the classes of the data are not the engine's.
    """
    if frame.semantics is not None and "semantics" in manifest.tasks:
        check_classes(source.class_names, manifest.classes)
    return {task: "reference" if getattr(frame, task) is None else "labels" for task in manifest.tasks}


class Measurer:
    """Runs frames through reference and engine, and measures each on its own."""

    def __init__(self, runtime: Runtime, reference: Reference, targets: dict[str, Against]) -> None:
        self._manifest = runtime.manifest
        sides = _Plain if runtime.manifest.sensor is None else _Sensor
        self._sides = sides(runtime, reference)
        classes = runtime.manifest.classes
        self._tasks = [TaskComparison(task, against, classes) for task, against in targets.items()]

    def both(self, frame: Frame) -> BothSides:
        return self._sides.both(frame)

    def record(self, frame: Frame, both: BothSides) -> FrameRecord:
        """Raises M2HError, naming the frame, when its labels do not fit its image."""
        return FrameRecord(
            printable(frame.name),
            {name: tensor_sums(name, both.reference_outputs[name], both.engine_outputs[name], both.nonfinite[name])
             for name in compared_outputs(self._manifest)},
            {task.task: task.states(frame, both.reference, both.engine) for task in self._tasks},
            {task.task: difference(task.task, both.reference, both.engine) for task in self._tasks},
            frame.derived,
        )  # fmt: skip


def compared_outputs(manifest: Manifest) -> list[str]:
    """Outputs that are compared value by value. Labels have no distance: of a sensor graph's, the figures tell."""
    return [task for task in manifest.tasks if manifest.sensor is None or task != "semantics"]


def output_unit(manifest: Manifest, name: str) -> str:
    """Name what the values of a compared output are: a sensor graph ends in probabilities, others in logits."""
    return (TABLE[name].output if manifest.sensor is None else TABLE[name].result).quantity


@dataclass
class Comparison:
    """What all frames add up to."""

    tensors: list[TensorComparison]
    tasks: list[TaskComparison]
    derived: set[str]
    frames: int = 0

    @classmethod
    def of(cls, manifest: Manifest, targets: dict[str, Against], records: Iterable[FrameRecord]) -> Comparison:
        """Add up `records`. One order gives the same bits every time, whoever measured them."""
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
    """The network's outputs on one preprocessed tensor, and what postprocess makes of each."""

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
    """The reference between Python's preprocess and postprocess, and the finished results of a sensor graph.

    Where the graph takes NV12, the reference sees the colors that NV12 left.
    """

    def __init__(self, runtime: Runtime, reference: Reference) -> None:
        self._runtime, self._reference = runtime, reference
        self._preprocess = preprocess_for(runtime.manifest.network_input)
        self._postprocess = Postprocess(runtime.manifest.depth_range)

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
    """`outputs`. Raises M2HError where a reference gives NaN or infinity: nothing can be measured against it."""
    bad = [name for name, value in outputs.items() if not np.isfinite(value).all()]
    if bad:
        raise M2HError(
            f"the reference gives NaN or infinity in {', '.join(bad)} on {frame.name}: its weights are damaged"
        )
    return outputs


def _maps(prediction: Prediction) -> Outputs:
    """Depth, normals and edges of a prediction with the channels first."""
    maps = {"depth": prediction.depth, "edges": prediction.edges}
    found = {name: value[None] for name, value in maps.items() if value is not None}
    if prediction.normals is not None:
        found["normals"] = np.ascontiguousarray(prediction.normals.transpose(2, 0, 1))
    return found


def _arrays(maps: Outputs) -> dict[str, Any]:
    """Inverse of `_maps`: what a prediction holds."""
    return {
        name: np.ascontiguousarray(value.transpose(1, 2, 0)) if name == "normals" else value[0]
        for name, value in maps.items()
    }


def _finite(outputs: Outputs) -> tuple[Outputs, dict[str, int]]:
    """Outputs without NaN and infinity, and how many values of each were: FP16 that overflows is what a parity run is
    for, so it is counted and the rest is measured."""
    bad = {name: int(np.count_nonzero(~np.isfinite(value))) for name, value in outputs.items()}
    finite = {n: np.nan_to_num(v, nan=0.0, posinf=0.0, neginf=0.0) if bad[n] else v for n, v in outputs.items()}
    return finite, bad
