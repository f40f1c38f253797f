"""Predict a folder of images on many workers, to files like those of `run`, or to Parquet."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import cv2

from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.choices import SelfTestChoice
from m2h_deploy.cluster.digests import files_digest, job_digest
from m2h_deploy.cluster.jobs import TASK_FRAMES, Complain, FrameWorker, Job, JobResult, Progress, Row, Status, run_job
from m2h_deploy.cluster.parts import PART_FRAMES, part_row, settle_parts, write_part
from m2h_deploy.cluster.session import Cluster, on_demand
from m2h_deploy.cluster.state import State
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder, write_text
from m2h_deploy.predict import predict_item
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.sinks.files import ResultFiles, check_results
from m2h_deploy.sources.source import SourceFrame, folder_images, read_item

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Subfolder of the results' folder; Parquet readers ignore names that begin with a dot.
_STATE = ".m2h"


@dataclass(frozen=True)
class PredictSettings:
    """Settings of each worker."""

    bundle: Path
    output: Path
    npz: bool = False
    threads: int = 1
    self_test: SelfTestChoice = "auto"
    plugins: tuple[Path, ...] = ()
    allow_engine_code: bool = False


class PredictKeywords(TypedDict, total=False):
    """The options of `predict_folder` as keywords: the fields of `PredictOptions`."""

    parquet: bool
    npz: bool
    limit: int | None
    self_test: SelfTestChoice
    plugins: Sequence[str | os.PathLike[str]]
    allow_engine_code: bool
    overwrite: bool


@dataclass(frozen=True)
class PredictOptions:
    """Options of a job: images, outputs and checks."""

    parquet: bool = False
    """Write Parquet instead of files."""
    npz: bool = False
    """Also write all outputs as npz, as a file or a column."""
    limit: int | None = None
    """Process only this many images, the first by name."""
    self_test: SelfTestChoice = "auto"
    """When each worker runs the engine's self-test before its first frame; see `Runtime.load`."""
    plugins: Sequence[str | os.PathLike[str]] = ()
    """Libraries that a TensorRT plan needs."""
    allow_engine_code: bool = False
    """Allow the code in a version-compatible plan of TensorRT to be executed."""
    overwrite: bool = True
    """Also replace files in the results' folder that m2h-deploy did not write."""

    def settings(self, bundle: str | os.PathLike[str], results: Path, threads: int) -> PredictSettings:
        """Return what a worker needs."""
        return PredictSettings(
            Path(bundle).resolve(),
            results,
            self.npz,
            threads,
            self.self_test,
            tuple(Path(plugin).resolve() for plugin in self.plugins),
            self.allow_engine_code,
        )


def predict_folder(
    bundle: str | os.PathLike[str],
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    complain: Complain | None = None,
    **options: Unpack[PredictKeywords],
) -> JobResult:
    """Predict on every image of the folder `source`; results of the same job that `output` has already are kept.

    A frame counts as done when its complete result is in `output`. The same call again processes only frames that are
    new, changed, failed or were not reached: frames are identified by the name, size and modification time of their
    file, a job by the engine's sha256 and the settings that affect results. All nodes need the bundle, the images and
    `output` at the same paths.

    Args:
        bundle: The bundle's folder.
        source: Folder of images.
        output: Folder of the results: files as `write_prediction` makes them, or with `parquet` parts (see `parts`).
        cluster: The cluster to use; a local one by default.
        progress: Called as frames are done.
        complain: Called with the reason of each frame without a result.
        options: The fields of `PredictOptions`.

    Raises:
        M2HError: Ray is missing or unreachable, a bundle or a folder is damaged, or a file blocks the output. A frame
            that cannot be read is in `JobResult.failed`.
    """
    cluster, chosen = cluster or Cluster(), PredictOptions(**options)
    folder, results = Path(source).resolve(), Path(output).resolve()
    if not folder.is_dir():
        raise M2HError(f"{source} is not a folder: a job on Ray takes a folder of images")
    if folder == results:
        raise M2HError(f"{output} is the source itself: results could overwrite its files; give another folder")
    manifest = load_bundle(bundle).manifest
    kind = "parquet" if chosen.parquet else "files"
    rows = _rows(folder, chosen.limit, job_digest(manifest, {"kind": kind, "npz": chosen.npz}))
    check_folder(results)
    if not chosen.parquet and not chosen.overwrite:
        check_results(results, {row.name for row in rows}, npz=chosen.npz)
    settings = chosen.settings(bundle, results, cluster.threads)
    with on_demand(cluster) as connect:
        make_folder(results)
        state = State.begin(results / _STATE)
        worker: type[FrameWorker]
        if chosen.parquet:
            left, worker, task_frames = settle_parts(results, rows), _ToParquet, PART_FRAMES
        else:
            left = [row for row in rows if not _stamp(state, row).fits(row)]
            worker, task_frames = _ToFiles, TASK_FRAMES
        job = Job(worker, (state, settings), left, reused=len(rows) - len(left), task_frames=task_frames)
        return run_job(connect, job, progress=progress, complain=complain)


def _rows(folder: Path, limit: int | None, job: str) -> list[Row]:
    images = folder_images(folder)[:limit]
    return [Row(name, files_digest(job, name, [file]), str(file)) for name, file in images]


class _Predictor(FrameWorker):
    """Open the bundle and predict; subclasses store the predictions."""

    def __init__(self, state: State, settings: PredictSettings) -> None:
        super().__init__(state)
        self.settings = settings
        self._runtime: Runtime | None = None

    def open(self) -> None:
        settings = self.settings
        cv2.setNumThreads(settings.threads)
        self._runtime = Runtime.load(
            settings.bundle,
            threads=settings.threads,
            self_test=settings.self_test,
            plugins=settings.plugins,
            allow_engine_code=settings.allow_engine_code,
        )

    def work(self, row: Row) -> tuple[Status, str, bytes]:
        assert self._runtime is not None
        outcome = predict_item(self._runtime, read_item(row.name, Path(row.source)), [partial(self.put, row)])
        if outcome.status == "failed":
            raise M2HError(outcome.reason)
        return outcome.status, outcome.reason, b""

    @abstractmethod
    def put(self, row: Row, frame: SourceFrame, prediction: Prediction) -> None:
        """Store the results of one frame."""


class _ToFiles(_Predictor):
    """Write the files of each frame, and then the stamp that makes them valid."""

    def is_there(self, row: Row) -> bool:
        return _stamp(self.state, row).fits(row)

    def put(self, row: Row, frame: SourceFrame, prediction: Prediction) -> None:
        assert self._runtime is not None
        stamp = _stamp(self.state, row)
        stamp.remove()  # first: it must not remain valid for a mixture of old and new files
        classes = self._runtime.manifest.classes
        files = ResultFiles(self.settings.output, classes, npz=self.settings.npz)
        files.add(frame, prediction)
        stamp.write(row, files.written)


class _ToParquet(_Predictor):
    """Write one part for the frames of a task; they are valid once it exists."""

    def __init__(self, state: State, settings: PredictSettings) -> None:
        super().__init__(state, settings)
        self._rows: list[dict[str, Any]] = []

    def put(self, row: Row, frame: SourceFrame, prediction: Prediction) -> None:
        self._rows.append(part_row(row, frame.image, prediction, npz=self.settings.npz))

    def finish(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            write_part(self.settings.output, rows)


@dataclass(frozen=True)
class _Stamp:
    """Record of the digest of a frame's complete set of files."""

    path: Path

    def fits(self, row: Row) -> bool:
        """Return whether the files belong to this row and are unchanged."""
        try:
            content = json.loads(self.path.read_bytes())
            folder = self.path.parents[2]
            return content["digest"] == row.key and all(
                _size_and_time(folder / name) == tuple(known) for name, known in content["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False

    def write(self, row: Row, files: list[Path]) -> None:
        make_folder(self.path.parent)
        content = {"digest": row.key, "files": {file.name: _size_and_time(file) for file in files}}
        write_text(self.path, json.dumps(content))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _stamp(state: State, row: Row) -> _Stamp:
    return _Stamp(state.folder / "done" / f"{row.name}.json")


def _size_and_time(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
