"""A job: rows go to Ray Data's pool of workers, answers come back in whatever order they are done."""

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

#: Called with how many frames are done and how many there are, at the start and as answers come.
Progress = Callable[[int, int], None]

#: Called with a line about a frame: "failed" or "skipped", and why.
Complain = Callable[[str, str], None]

#: Frames of one task of Ray's. Its answers come together, and a worker that dies takes up at most as many again.
TASK_FRAMES = 8

#: Beyond this many tasks Ray's bookkeeping costs more than it spares; a million frames then have 50 a task.
_MOST_TASKS = 20_000

Status = Literal["done", "there", "skipped", "failed", "fatal"]


@dataclass(frozen=True)
class Row:
    """A frame to work on: what it is called, its digest, and where it comes from, a path or an index."""

    name: str
    key: str
    source: str


@dataclass(frozen=True)
class JobResult:
    """How a job went."""

    frames: int
    """Frames that the job has a result of, `reused` ones included."""
    reused: int
    """Results that were there from an earlier job."""
    skipped: tuple[str, ...]
    """Why, of files that were not meant to be frames."""
    failed: tuple[str, ...]
    """Why, of frames that have no result."""
    workers: int
    """That had work; 0 where nothing was left to do."""
    replaced: int
    """Workers that died and were started again by Ray, as far as they had answered."""
    seconds: float
    """What the job took, the engines' loading included and Ray's start not."""

    @property
    def done(self) -> int:
        """Frames that this job did."""
        return self.frames - self.reused

    @property
    def summary(self) -> str:
        """One line for people."""
        how = f" by {self.workers} workers, {self.done / self.seconds:.1f} a second" if self.done else ""
        return f"{self.done} frames done{how}; {self.reused} were there"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`: counts, seconds and frames a second."""
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
    """One process of the pool: opens what it needs at its first frame, then answers row by row.

    A frame that fails is an answer too. Only a process that dies is Ray's to deal with.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._fatal = ""
        self._opened = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
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
        except Exception as error:  # an engine's or a library's: the job ends with it in any case
            self._fatal = _words(error)
        if self._fatal:
            return "fatal", self._fatal, b""
        try:
            if self.is_there(row):  # the worker before this one came as far as that
                return "there", "", b""
            with self.state.attempt(row.key):
                return self.work(row)
        except M2HError as error:
            text = str(error)
            return "failed", text if row.name in text else f"{row.name}: {text}", b""
        except Exception as error:  # one frame's trouble must not take the others down
            return "failed", f"{row.name}: {_words(error)}", b""

    @abstractmethod
    def open(self) -> None:
        """Open engine and data. Raises M2HError when that cannot be: then the job ends."""

    @abstractmethod
    def work(self, row: Row) -> tuple[Status, str, bytes]:
        """One frame to its result: what became of it, why, and what goes back. Raises M2HError when it has none."""

    def is_there(self, row: Row) -> bool:
        """Whether the frame's result lies there already."""
        return False

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """Called after the last row of a task: nothing counts before it returns."""


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
    """Run all rows of `job` through a pool of workers; `keep` gets what comes back, by key. No rows, no Ray.

    Raises M2HError when a worker cannot begin at all, or Ray gives up.
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
    """Ray Data: rows in blocks, a pool of actors, answers one by one.

    A dead actor is started again without limit, and what it had in work goes to another: Ray Data's default.
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
    except Exception as error:  # Ray Data's own and those of Ray have no common base
        raise M2HError(f"Ray failed ({_words(error)}): run the same command again") from error


def _words(error: Exception) -> str:
    """An error that is not this project's, in one line."""
    kind = type(error).__name__
    return kind if first_line(error) == kind else f"{kind}: {first_line(error)[:300]}"
