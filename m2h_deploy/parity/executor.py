"""Executors run the frames of a parity run through reference and engine. The local one takes them in turn."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.data.frame import Dataset
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.arrays import DAMAGED_ARRAY
from m2h_deploy.files.atomic import whole_file
from m2h_deploy.parity.frames import FrameRecord, Measurer
from m2h_deploy.parity.gates import GateResult
from m2h_deploy.parity.pictures import WorstFrame, WorstFrames
from m2h_deploy.parity.reference import Outputs, Reference, open_reference
from m2h_deploy.parity.result import Side
from m2h_deploy.parity.tasks import Against, State
from m2h_deploy.runtime.runtime import Runtime

#: Called with the numbers of finished frames and of all frames.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Request:
    """Input of an executor."""

    bundle: Bundle
    reference: str
    data: Dataset
    path: Path | None
    """Path from which `data` was opened with `split`; None for a data set object of the caller."""
    split: str
    indices: list[int]
    """Frames to measure, in this order."""
    targets: dict[str, Against]
    pictures: int
    """Number of worst frames to draw per task."""
    allow_other_weights: bool
    calibrated: bool = False
    """Apply the bundle's depth calibration to both sides."""


@dataclass(frozen=True)
class Sides:
    """Descriptions of both sides, and the result of the bundle's self-test."""

    reference: Side
    engine: Side
    self_test: tuple[GateResult, ...]


@dataclass(frozen=True, eq=False)
class Measured:
    """Output of an executor: the records in the order of the request's indices."""

    records: list[FrameRecord]
    sides: Sides
    worst: tuple[WorstFrame, ...]


@dataclass(frozen=True)
class Memory:
    """Results of one reference on the frames of one data set: outputs in a folder's files, metric states here."""

    folder: Path
    states: dict[tuple[str, str], State] = field(default_factory=dict)


class _Remembered:
    """A reference that computes every image once."""

    def __init__(self, reference: Reference, memory: Memory) -> None:
        self._reference, self._folder = reference, memory.folder
        self.description, self.tasks = reference.description, reference.tasks
        self.weights_sha256 = reference.weights_sha256

    def run(self, image: NDArray[np.float32]) -> Outputs:
        """Run the reference on an image, or read the outputs that it gave before."""
        digest = hashlib.sha256(image.tobytes() + self.weights_sha256.encode()).hexdigest()
        file = self._folder / f"{digest}.npz"
        try:
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in self.tasks}
        except DAMAGED_ARRAY:
            outputs = self._reference.run(image)
        with contextlib.suppress(M2HError), whole_file(file) as temporary:  # only time is lost without it
            np.savez(temporary, **outputs)  # type: ignore[arg-type]
        return outputs


class Executor(Protocol):
    """Interface of executors."""

    def measure(self, request: Request, progress: Progress | None = None) -> Measured:
        """Measure the frames of `request`. Raises M2HError if a frame cannot be measured."""
        ...


@dataclass(frozen=True)
class LocalExecutor:
    """Measure the frames in this process, one after the other."""

    threads: int | None = None
    """CPU threads of the engine, and of a reference in ONNX."""
    device: str | None = None
    """Device of the engine, if its kind supports several."""
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries of TensorRT that may be loaded."""
    allow_engine_code: bool = False
    """Allow the code in a version-compatible plan of TensorRT to be executed."""
    memory: Memory | None = None
    """The reference's results of earlier runs on the same frames, to use and to add to."""

    def measure(self, request: Request, progress: Progress | None = None) -> Measured:
        """Measure the frames of `request` in order; `progress` is called after each."""
        opening = {name: value for name, value in vars(self).items() if name != "memory"}
        with Runtime.load(request.bundle, self_test=False, calibrated=request.calibrated, **opening) as runtime:
            measurer, sides = open_sides(
                runtime,
                request.reference,
                request.targets,
                self.threads,
                allow_other_weights=request.allow_other_weights,
                memory=self.memory,
            )
            worst = WorstFrames(runtime.manifest.classes, request.pictures)
            records = []
            for done, index in enumerate(request.indices, start=1):
                frame = request.data[index]
                both = measurer.both(frame)
                records.append(measurer.record(frame, both))
                for task, mean in records[-1].differences.items():
                    worst.add(task, frame, both.reference, both.engine, mean)
                if progress is not None:
                    progress(done, len(request.indices))
        return Measured(records, sides, worst.result())


def open_sides(
    runtime: Runtime,
    reference: str,
    targets: dict[str, Against],
    threads: int | None,
    *,
    allow_other_weights: bool,
    memory: Memory | None = None,
) -> tuple[Measurer, Sides]:
    """Open the reference next to the engine and run the engine's self-test; a bundle that fails it is still measured.

    Raises:
        M2HError: The reference does not exist, or the two sides cannot be compared.
    """
    opened = open_reference(reference, runtime.manifest.network_input, threads, runtime.manifest.label_map)
    _check_pair(runtime, opened, reference, allow_other_weights=allow_other_weights)
    sides = Sides(
        Side(opened.description, opened.weights_sha256),
        Side(runtime.backend.description, runtime.manifest.model.weights_sha256),
        _self_test(runtime),
    )
    if memory is not None:
        return Measurer(runtime, _Remembered(opened, memory), targets, memory.states), sides
    return Measurer(runtime, opened, targets), sides


def _check_pair(runtime: Runtime, reference: Reference, name: str, *, allow_other_weights: bool) -> None:
    """Raise M2HError if the two sides cannot be compared."""
    built = runtime.manifest.model.weights_sha256
    if built != reference.weights_sha256 and not allow_other_weights:
        raise M2HError(
            f"{runtime.bundle.path} was built from weights {built[:12]}, {name} holds {reference.weights_sha256[:12]}: "
            "give the checkpoint the bundle was built from"
        )
    absent = [task for task in runtime.manifest.tasks if task not in reference.tasks]
    if absent:
        raise M2HError(f"{name} has no {', '.join(absent)}, the engine has: export the reference with all tasks")


def _self_test(runtime: Runtime) -> tuple[GateResult, ...]:
    """Run the bundle's golden self-test as a gate."""
    if runtime.manifest.self_test is None:
        return ()
    message = "the golden self-test passed"
    try:
        runtime.self_test()
        passed = True
    except CheckFailed as error:
        passed, message = False, str(error)
    return (GateResult("self_test", None, "pass" if passed else "fail", None, None, None, "", message),)
