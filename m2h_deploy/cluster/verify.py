"""Run `verify` on many workers.

Each worker measures frames, and one process adds them up in order, so the figures are those of a single process.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from m2h_deploy.causes import failure
from m2h_deploy.cluster.digests import frame_digest, job_digest, reference_digest
from m2h_deploy.cluster.jobs import Complain, FrameWorker, Job, JobResult, Row, Status, run_job
from m2h_deploy.cluster.session import Cluster, Session, on_demand
from m2h_deploy.cluster.state import State
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.open import open_dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.files.arrays import DAMAGED_ARRAY
from m2h_deploy.files.atomic import make_folder, write_bytes
from m2h_deploy.label_spaces.data import map_dataset
from m2h_deploy.parity.executor import Measured, Progress, Request, Sides, open_sides
from m2h_deploy.parity.frames import FrameRecord, Measurer
from m2h_deploy.parity.gates import GateResult
from m2h_deploy.parity.pictures import WorstFrame, draw_worst
from m2h_deploy.parity.result import Side
from m2h_deploy.parity.tasks import Against
from m2h_deploy.runtime.runtime import Runtime

#: Version of the files with frames' measurements; frames with another version are measured again.
RECORD_VERSION = 2


@dataclass(frozen=True, eq=False)
class MeasureSettings:
    """Settings of each worker."""

    bundle: Path
    reference: str
    data: Dataset | Path
    """A path is opened by each worker; a data set in memory is sent to each."""
    split: str
    targets: dict[str, Against]
    allow_other_weights: bool
    calibrated: bool
    threads: int
    job: str
    """Digest of the job, see `job_digest`."""


class RayExecutor:
    """Measure the frames of `m2h_deploy.parity.verify` on a pool of workers.

    The measurements of each frame are a small file in the folder `work`; they are added up in the order of the frames,
    so that the result is bit-identical to that of a single process with the same threads. The same call again measures
    only frames that are new, changed or were not reached. Pictures are drawn at the end, for which their frames are run
    again. Nodes need bundle, reference and data at the same paths.
    """

    def __init__(
        self, cluster: Cluster, work: str | os.PathLike[str] | None = None, complain: Complain | None = None
    ) -> None:
        """Set the cluster, the folder of measurements and a callback for failed frames.

        `work` must be accessible to every worker, and is BUNDLE.parity by default; bundles and data sets may share one.
        `complain` is called with the reason of each frame that could not be measured.
        """
        self._cluster, self._work, self._complain = cluster, work, complain
        self.job: JobResult | None = None
        """Result of the last job."""

    def measure(self, request: Request, progress: Progress | None = None) -> Measured:
        """Measure the frames of `request` on the cluster.

        Raises:
            M2HError: Ray is missing or unreachable, or a frame cannot be measured; the other frames are measured and
                stored first.
        """
        settings = _settings(request, self._cluster.threads)
        rows = [
            Row(f"frame {index}", frame_digest(settings.job, request.data, index), str(index))
            for index in request.indices
        ]
        with on_demand(self._cluster) as connect:
            state = State.begin(Path(self._work or f"{settings.bundle}.parity").resolve())
            left = [row for row in rows if not _file(state, row.key).is_file()]
            job = Job(_Measure, (state, settings), left, reused=len(rows) - len(left))
            self.job = run_job(connect, job, progress=progress, complain=self._complain)
            if self.job.failed:
                count = f"{len(self.job.failed)} of {len(rows)} frames could not be measured"
                raise M2HError(f"{count}: {self.job.failed[0]}")
            records, sides = _read_all(state, rows)
            return Measured(records, sides, _pictures(connect, state, settings, rows, records, request.pictures))


def _settings(request: Request, threads: int) -> MeasureSettings:
    """Return the workers' settings."""
    reference = str(Path(request.reference).resolve()) if Path(request.reference).exists() else request.reference
    what = {"kind": "verify", "version": RECORD_VERSION, "reference": reference_digest(reference),
            "targets": request.targets, "calibrated": request.calibrated}  # fmt: skip
    return MeasureSettings(
        request.bundle.path.resolve(), reference, request.data if request.path is None else request.path.resolve(),
        request.split, request.targets, request.allow_other_weights, request.calibrated, threads,
        job_digest(request.bundle.manifest, what),
    )  # fmt: skip


class _Measure(FrameWorker):
    """Measure each frame and write its measurements."""

    def __init__(self, state: State, settings: MeasureSettings) -> None:
        super().__init__(state)
        self.settings = settings
        self._parts: tuple[Dataset, Runtime, Measurer, Sides] | None = None

    def open(self) -> None:
        settings = self.settings
        cv2.setNumThreads(settings.threads)
        runtime = Runtime.load(settings.bundle, self_test=False, threads=settings.threads,
                               calibrated=settings.calibrated)  # fmt: skip
        source = settings.data  # of `verify`, which has mapped its labels
        if isinstance(source, Path):
            manifest = runtime.manifest
            source = map_dataset(open_dataset(source, settings.split), manifest.classes, manifest.label_map)
        measurer, sides = open_sides(runtime, settings.reference, settings.targets, settings.threads,
                                     allow_other_weights=settings.allow_other_weights)  # fmt: skip
        self._parts = source, runtime, measurer, sides

    def is_there(self, row: Row) -> bool:
        return _file(self.state, row.key).is_file()

    def work(self, row: Row) -> tuple[Status, str, bytes]:
        assert self._parts is not None
        source, _, measurer, sides = self._parts
        index = int(row.source)
        if hasattr(source, "files_of") and frame_digest(self.settings.job, source, index) != row.key:
            raise M2HError("its files have changed since the job began: run the same command again")
        frame = source[index]
        record = measurer.record(frame, measurer.both(frame))
        file = _file(self.state, row.key)
        make_folder(file.parent)
        write_bytes(file, _encode(record, sides))
        return "done", "", b""


class _Draw(_Measure):
    """Draw the tasks that a row names, and return the pictures."""

    def is_there(self, row: Row) -> bool:
        return False

    def work(self, row: Row) -> tuple[Status, str, bytes]:
        assert self._parts is not None
        source, runtime, measurer, _ = self._parts
        frame = source[int(row.source)]
        both = measurer.both(frame)
        differences = measurer.record(frame, both).differences
        drawn = [
            draw_worst(task, frame, both.reference, both.engine, differences[task], runtime.manifest.classes)
            for task in row.name.split(",")
        ]
        return "done", "", json.dumps([_plain(worst) for worst in drawn]).encode()


def _pictures(
    connect: Callable[[], Session],
    state: State,
    settings: MeasureSettings,
    rows: Sequence[Row],
    records: Sequence[FrameRecord],
    keep: int,
) -> tuple[WorstFrame, ...]:
    """Return pictures of the `keep` frames of each task that differ most, the worst first."""
    ranked = {
        task: sorted(range(len(records)), key=lambda i, task=task: -records[i].differences[task])[:keep]  # type: ignore[misc]
        for task in settings.targets
    }
    tasks: dict[int, list[str]] = {}
    for task, frames in ranked.items():
        for index in frames:
            tasks.setdefault(index, []).append(task)
    if not tasks:
        return ()
    drawn: dict[tuple[str, str], WorstFrame] = {}

    def keep_pictures(key: str, content: bytes) -> None:
        for values in json.loads(content):
            pictures = {name: base64.b64decode(jpeg) for name, jpeg in values.pop("pictures").items()}
            drawn[key, values["task"]] = WorstFrame(**values, pictures=pictures)

    wanted = [dataclasses.replace(rows[index], name=",".join(names)) for index, names in tasks.items()]
    run_job(connect, Job(_Draw, (state, settings), wanted), keep=keep_pictures)
    order = [(rows[index].key, task) for task, frames in ranked.items() for index in frames]
    return tuple(drawn[place] for place in order if place in drawn)


def _plain(worst: WorstFrame) -> dict[str, Any]:
    """Return JSON-compatible values, with the pictures in base64."""
    pictures = {name: base64.b64encode(jpeg).decode() for name, jpeg in worst.pictures.items()}
    return {**vars(worst), "pictures": pictures}


def _file(state: State, key: str) -> Path:
    return state.folder / "frames" / key[:2] / f"{key}.npz"


def _encode(record: FrameRecord, sides: Sides) -> bytes:
    arrays: dict[str, Any] = {f"tensor.{name}": sums for name, sums in record.tensors.items()}
    for task, states in record.tasks.items():
        arrays |= {f"task.{task}.{place}": value for place, value in enumerate(states)}
    head = {
        "name": record.name,
        "differences": record.differences,
        "derived": sorted(record.derived),
        "sides": dataclasses.asdict(sides),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, head=np.array(json.dumps(head)), **arrays)
    return buffer.getvalue()


def _decode(file: Path) -> tuple[FrameRecord, Sides]:
    try:
        with np.load(file, allow_pickle=False) as content:
            head = json.loads(str(content["head"]))
            tensors = {name.removeprefix("tensor."): content[name] for name in content.files if name[:7] == "tensor."}
            tasks: dict[str, tuple[Any, ...]] = {}
            for name in sorted(name for name in content.files if name.startswith("task.")):
                tasks[name.split(".")[1]] = (*tasks.get(name.split(".")[1], ()), content[name])
        sides = head["sides"]
        tests = tuple(GateResult(**gate) for gate in sides["self_test"])
        record = FrameRecord(head["name"], tensors, tasks, head["differences"], frozenset(head["derived"]))
        return record, Sides(Side(**sides["reference"]), Side(**sides["engine"]), tests)
    except DAMAGED_ARRAY as error:
        damaged = f"{file} is damaged: remove it and run again ({' '.join(str(error).split())[:100]})"
        raise failure(error, f"cannot read {file}", damaged) from None


def _read_all(state: State, rows: Sequence[Row]) -> tuple[list[FrameRecord], Sides]:
    """Read the measurements of all frames in order, and the sides; descriptions are joined if nodes differ."""
    found = [_decode(_file(state, row.key)) for row in rows]
    sides = [side for _, side in found]
    failed = [side for side in sides if any(gate.verdict == "fail" for gate in side.self_test)]
    return [record for record, _ in found], Sides(
        _joined([side.reference for side in sides]),
        _joined([side.engine for side in sides]),
        (failed or sides)[0].self_test,
    )


def _joined(sides: Sequence[Side]) -> Side:
    names = dict.fromkeys(side.description for side in sides)
    return Side("; ".join(names), sides[0].weights_sha256)
