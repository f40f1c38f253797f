"""`verify` on many workers: each measures frames, one process adds them up in order, so the figures are the same."""

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

from m2h_deploy.bundle.manifest import Bundle, load_bundle, record_result
from m2h_deploy.causes import failure
from m2h_deploy.cluster.digests import frame_digest, job_digest, reference_digest
from m2h_deploy.cluster.jobs import Complain, FrameWorker, JobResult, Progress, Row, Status, run_job
from m2h_deploy.cluster.session import Cluster, Session, on_demand
from m2h_deploy.cluster.state import State
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.open import open_dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.files.arrays import DAMAGED_ARRAY
from m2h_deploy.files.atomic import make_folder, write_bytes
from m2h_deploy.parity.bootstrap import RESAMPLES
from m2h_deploy.parity.frames import Comparison, FrameRecord, Measurer, choose_targets
from m2h_deploy.parity.gates import GateResult, Gates
from m2h_deploy.parity.pictures import WorstFrame, draw_worst
from m2h_deploy.parity.reference import Reference, open_reference
from m2h_deploy.parity.result import DataInfo, Side, VerifyResult, to_json
from m2h_deploy.parity.tasks import Against
from m2h_deploy.parity.verify import Sides, check_pair, conclude, describe, name_of, spread
from m2h_deploy.runtime.runtime import Runtime

#: Of the files of frames' measurements; another version is measured again.
RECORD_VERSION = 2


@dataclass(frozen=True, eq=False)
class MeasureSettings:
    """What each worker measures."""

    bundle: Path
    reference: str
    data: Dataset | Path
    """A path is opened by each worker, a data set in memory goes to each."""
    split: str
    targets: dict[str, Against]
    threads: int
    job: str
    """Digest, see `job_digest`."""


def verify_on(
    cluster: Cluster,
    bundle_path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    data: Dataset | str | os.PathLike[str],
    *,
    work: str | os.PathLike[str],
    gates: Gates | None = None,
    limit: int | None = None,
    split: str = "val",
    pictures: int = 0,
    resamples: int = RESAMPLES,
    record: bool = True,
    progress: Progress | None = None,
    complain: Complain | None = None,
) -> tuple[VerifyResult, JobResult]:
    """`m2h_deploy.parity.verify` with the frames on a pool of workers.

    The measurements of each frame are a small file in the folder `work`; they are added up in the order of the frames,
    so that the result has the bits of a single process with the same threads. The same call again measures only frames
    that are new, changed or were not reached.

    Args:
        cluster: where.
        bundle_path, reference, data, gates, limit, split, resamples, record: as `verify` takes them. Nodes need files
            at the same paths.
        work: folder of the measurements, seen by every worker. Bundles and data sets may share one.
        pictures: pictures of this many worst frames a task; those frames are run once more.
        progress: called as frames are done.
        complain: called with the reason of each frame that could not be measured, and each file that is not a picture.

    Raises:
        M2HError: as `verify`, and where Ray is missing or not there. A frame that cannot be measured raises at the
            end, when the others are done and kept.
    """
    path = Path(data).resolve() if isinstance(data, (str, os.PathLike)) else None
    source = open_dataset(path, split) if path is not None else data
    assert not isinstance(source, (str, os.PathLike))
    for reason in getattr(source, "skipped", ()):
        if complain is not None:
            complain("skipped", reason)
    bundle = load_bundle(Path(bundle_path).resolve())
    indices = spread(len(source), limit, name_of(data))
    settings = _settings(bundle, reference, path or source, split, source, indices[0], cluster.threads)
    rows = [Row(f"frame {index}", frame_digest(settings.job, source, index), str(index)) for index in indices]
    with on_demand(cluster) as connect:
        state = State.begin(Path(work).resolve())
        left = [row for row in rows if not _file(state, row.key).is_file()]
        summary = run_job(
            connect, _Measure, (state, settings), left,
            reused=len(rows) - len(left), progress=progress, complain=complain,
        )  # fmt: skip
        if summary.failed:
            count = f"{len(summary.failed)} of {len(rows)} frames could not be measured"
            raise M2HError(f"{count}: {summary.failed[0]}")
        records, sides = _read_all(state, rows)
        worst = _pictures(connect, state, settings, rows, records, pictures)
    comparison = Comparison.of(bundle.manifest, settings.targets, records)
    info = DataInfo(name_of(data), len(indices), len(source), tuple(sorted(comparison.derived)))
    result = conclude(bundle, sides, comparison, info, gates or Gates(), resamples=resamples, worst=worst)
    if record:
        record_result(bundle, parity=to_json(result))
    return result, summary


def _settings(
    bundle: Bundle,
    reference: str | os.PathLike[str],
    data: Dataset | Path,
    split: str,
    source: Dataset,
    first: int,
    threads: int,
) -> MeasureSettings:
    """What the workers get; frame `first` says what labels there are."""
    targets = choose_targets(bundle.manifest, source[first], source)
    given = str(Path(reference).resolve()) if Path(reference).exists() else str(reference)
    what = {"kind": "verify", "version": RECORD_VERSION, "reference": reference_digest(given), "targets": targets}
    return MeasureSettings(bundle.path, given, data, split, targets, threads, job_digest(bundle.manifest, what))


class _Measure(FrameWorker):
    """Measures each frame and writes what it found."""

    def __init__(self, state: State, settings: MeasureSettings) -> None:
        super().__init__(state)
        self.settings = settings
        self._parts: tuple[Dataset, Runtime, Reference, Measurer, Sides] | None = None

    def open(self) -> None:
        settings = self.settings
        cv2.setNumThreads(settings.threads)
        source = open_dataset(settings.data, settings.split) if isinstance(settings.data, Path) else settings.data
        runtime = Runtime.load(settings.bundle, self_test=False, threads=settings.threads)
        reference = open_reference(settings.reference, runtime.manifest.network_input, settings.threads)
        check_pair(runtime, reference, settings.reference, allow_other_weights=False)
        measurer = Measurer(runtime, reference, settings.targets)
        self._parts = source, runtime, reference, measurer, describe(runtime, reference)

    def is_there(self, row: Row) -> bool:
        return _file(self.state, row.key).is_file()

    def work(self, row: Row) -> tuple[Status, str, bytes]:
        assert self._parts is not None
        source, _, _, measurer, sides = self._parts
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
    """Draws the tasks that a row names, and gives the pictures back."""

    def is_there(self, row: Row) -> bool:
        return False

    def work(self, row: Row) -> tuple[Status, str, bytes]:
        assert self._parts is not None
        source, runtime, _, measurer, _ = self._parts
        frame = source[int(row.source)]
        both = measurer.both(frame)
        differences = measurer.record(frame, both).differences
        drawn = [
            draw_worst(task, frame, both.before, both.after, differences[task], runtime.manifest.classes)
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
    """Pictures of the `keep` frames of each task that differ most, the worst first."""
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
    run_job(connect, _Draw, (state, settings), wanted, keep=keep_pictures)
    order = [(rows[index].key, task) for task, frames in ranked.items() for index in frames]
    return tuple(drawn[place] for place in order if place in drawn)


def _plain(worst: WorstFrame) -> dict[str, Any]:
    """For JSON."""
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
    """The measurements of all frames in their order, and the sides: all there were, where nodes differ."""
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
