"""Run a job: rows go to Ray Data's pool of workers, results come back in any order."""

from __future__ import annotations

import math
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from m2h_deploy.cluster.session import Session
from m2h_deploy.cluster.state import State
from m2h_deploy.errors import M2HError, first_line

#: Called with the numbers of finished and of all frames, at the start and with each result.
Progress = Callable[[int, int], None]

#: Called with a frame's status, "failed" or "skipped", and the reason.
Complain = Callable[[str, str], None]

#: Number of frames per Ray task. Its results arrive together, and at most as many are repeated if a worker dies.
TASK_FRAMES = 8

#: With more tasks Ray's overhead exceeds the benefit; a million frames then have 50 per task.
_MOST_TASKS = 20_000

Status = Literal["done", "there", "skipped", "failed", "fatal"]


@dataclass(frozen=True)
class Row:
    """A frame to process: its name, its digest, and its source, a path or an index."""

    name: str
    key: str
    source: str


@dataclass(frozen=True)
class JobResult:
    """Counts and messages of a finished job."""

    frames: int
    """Number of frames with a result, including `reused` ones."""
    reused: int
    """Number of results from an earlier job."""
    skipped: tuple[str, ...]
    """Reasons of files that are not frames."""
    failed: tuple[str, ...]
    """Reasons of frames without a result."""
    workers: int
    """Number of workers that were used; 0 if nothing was left to do."""
    replaced: int
    """Number of workers that died and were restarted by Ray, if they had returned a result."""
    seconds: float
    """Duration of the job, including the loading of engines but not Ray's start."""

    @property
    def done(self) -> int:
        """Number of frames that this job processed."""
        return self.frames - self.reused

    @property
    def summary(self) -> str:
        """The result in one line."""
        how = f" by {self.workers} workers, {self.done / self.seconds:.1f} a second" if self.done else ""
        return f"{self.done} frames done{how}; {self.reused} reused"

    def to_json(self) -> dict[str, Any]:
        """Return values for `json.dumps`: counts, seconds and frames per second."""
        return {
            "frames": self.frames,
            "reused": self.reused,
            "failed": len(self.failed),
            "skipped": len(self.skipped),
            "workers": self.workers,
            "replaced_workers": self.replaced,
            "seconds": self.seconds,
            "frames_per_second": self.done / self.seconds if self.done else None,
        }


class FrameWorker(ABC):
    """One process of the pool: opens its engine and data at the first frame, then processes row by row.

    A failed frame is reported as a result. Only a process that dies is left to Ray.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._fatal = ""
        self._opened = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Process a batch of rows and return their results, one list per column."""
        rows = [Row(*(str(value) for value in values)) for values in zip(*(batch[k] for k in _FIELDS), strict=True)]
        answers = [self._answer(row) for row in rows]
        try:
            self.finish()
        except M2HError as error:
            answers = [("fatal", str(error), b"")] * len(rows)
        statuses, texts, values = zip(*answers, strict=True)
        worker = [f"{socket.gethostname()} {os.getpid()}"] * len(rows)
        return {"key": [row.key for row in rows], "status": [*statuses], "text": [*texts], "value": [*values],
                "worker": worker}  # fmt: skip

    def _answer(self, row: Row) -> tuple[Status, str, bytes]:
        try:
            if not self._opened and not self._fatal:
                self.state.check()
                self.open()
                self._opened = True
        except M2HError as error:
            self._fatal = str(error)
        except Exception as error:  # from an engine or a library: it ends the job in any case
            self._fatal = _words(error)
        if self._fatal:
            return "fatal", self._fatal, b""
        try:
            if self.is_there(row):  # an earlier worker finished it before it died
                return "there", "", b""
            with self.state.attempt(row.key):
                return self.work(row)
        except M2HError as error:
            text = str(error)
            return "failed", text if row.name in text else f"{row.name}: {text}", b""
        except Exception as error:  # the error of one frame must not affect the others
            return "failed", f"{row.name}: {_words(error)}", b""

    @abstractmethod
    def open(self) -> None:
        """Open engine and data. Raises M2HError if that fails, which ends the job."""

    @abstractmethod
    def work(self, row: Row) -> tuple[Status, str, bytes]:
        """Process one frame; return its status, the reason and the data to send back. Raises M2HError if it fails."""

    def is_there(self, row: Row) -> bool:
        """Return whether the frame's result exists already."""
        return False

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """Finish a task after its last row; results become valid when it returns."""


_FIELDS = ("name", "key", "source")


@dataclass(frozen=True)
class Job:
    """Rows to work on, and the worker of each process of the pool: `worker(*arguments)`."""

    worker: type[FrameWorker]
    arguments: tuple[Any, ...]
    rows: Sequence[Row]
    reused: int = 0
    """Frames that are done already, beside `rows`."""
    task_frames: int = TASK_FRAMES
    """Frames of one task of Ray's; more where there would be too many tasks."""

    @property
    def size(self) -> int:
        """Frames of one task."""
        return max(self.task_frames, math.ceil(len(self.rows) / _MOST_TASKS))

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return math.ceil(len(self.rows) / self.size)


def run_job(
    connect: Callable[[], Session],
    job: Job,
    *,
    progress: Progress | None = None,
    complain: Complain | None = None,
    keep: Callable[[str, bytes], None] | None = None,
) -> JobResult:
    """Process all rows of `job` with a pool of workers; Ray is started only if there are rows.

    `keep` is called with the key and the data of each result.

    Raises:
        M2HError: A worker cannot start, or Ray fails.
    """
    answered: set[str] = set()
    failed: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    session = connect() if job.rows else None
    workers = 0 if session is None else min(session.workers, job.tasks)
    start = time.perf_counter()
    total = job.reused + len(job.rows)
    if progress is not None:
        progress(job.reused, total)
    for answer in _answers(session, job, workers) if session is not None else ():
        status, text = answer["status"], answer["text"]
        if status == "fatal":
            raise M2HError(text)
        if answer["key"] in answered:
            continue
        answered.add(answer["key"])
        seen.add(answer["worker"])
        if status in ("failed", "skipped"):
            (failed if status == "failed" else skipped).append(text)
            if complain is not None:
                complain(status, text)
        elif keep is not None:
            keep(answer["key"], answer["value"])
        if progress is not None:
            progress(job.reused + len(answered), total)
    lost = [row.name for row in job.rows if row.key not in answered]
    if lost:
        raise M2HError(f"Ray returned no result for {len(lost)} frames ({lost[0]}, ...): run the same command again")
    frames = total - len(failed) - len(skipped)
    seconds = time.perf_counter() - start
    return JobResult(frames, job.reused, tuple(skipped), tuple(failed), workers, max(0, len(seen) - workers), seconds)


def _answers(session: Session, job: Job, workers: int) -> Iterator[dict[str, Any]]:
    """Run Ray Data: rows in blocks, a pool of actors, results one by one.

    Ray Data's default restarts a dead actor without limit, and passes its current task to another one.
    """
    ray = session.ray
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = [{field: getattr(row, field) for field in _FIELDS} for row in job.rows]
    frames = ray.data.from_items(items, override_num_blocks=job.tasks)
    answers = frames.map_batches(
        job.worker,
        fn_constructor_args=job.arguments,
        batch_size=job.size,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=session.threads,
        num_gpus=session.gpus or None,
    )
    try:
        yield from answers.iter_rows()
    except Exception as error:  # errors of Ray Data and of Ray have no common base
        raise M2HError(f"Ray failed ({_words(error)}): run the same command again") from error


def _words(error: Exception) -> str:
    """Format an error of another library in one line."""
    kind = type(error).__name__
    return kind if first_line(error) == kind else f"{kind}: {first_line(error)[:300]}"
