"""Measure with MLPerf LoadGen, which schedules queries, decides how many a percentile needs, and validates the run.

LoadGen's own settings apply unless a shorter duration is requested: 600 seconds in every scenario, 662 queries in
multi-stream, early stopping for the percentiles. Frames wait for one engine, which processes them one by one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.choices import Scenario, check_choice
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import scratch_folder, whole_folder
from m2h_deploy.profiling.measure import Samples, Subject, Timer

#: Request of LoadGen's process: the number of the query, the index of the sample. The reply is one byte.
MESSAGE = struct.Struct("qq")

_SUMMARY = "mlperf_log_summary.txt"
_RESULT = re.compile(r"Result is : (\w+)")
_CHECK = re.compile(r"^\s*((?:Min|Performance|Early)[\w ]*satisfied)\s*: (\w+)", re.MULTILINE)
_FIGURE = re.compile(
    r"^((?:[\d.]+th percentile latency|Samples per second|Completed samples per second)[^:]*):\s*([\d.]+)", re.MULTILINE
)


@dataclass(frozen=True)
class LoadSettings:
    """Settings of a LoadGen run.

    Raises:
        M2HError: A value is invalid.
    """

    scenario: Scenario
    duration_s: float | None = None
    """Duration of a shortened trial; None: LoadGen's 600 seconds."""
    expected_ms: float = 10.0
    """Approximate time of one frame, by which LoadGen plans its queries."""
    qps: float | None = None
    """Server: queries per second, Poisson distributed; None: 0.7 of the rate that `expected_ms` allows."""
    deadline_ms: float = 100.0
    """Server: 99 % of the queries must be completed in this time."""
    streams: int = 8
    """Multi-stream: samples per query."""

    def __post_init__(self) -> None:
        check_choice("scenario", self.scenario, Scenario)
        if self.duration_s is not None and not 0 < self.duration_s < float("inf"):
            raise M2HError(f"duration {self.duration_s:g} s: must be above 0")
        if self.qps is not None and not 0 < self.qps < float("inf"):
            raise M2HError(f"qps {self.qps:g}: must be above 0")
        if not 0 < self.deadline_ms < float("inf"):
            raise M2HError(f"deadline {self.deadline_ms:g} ms: must be above 0")
        if self.streams < 1:
            raise M2HError(f"{self.streams} streams: give at least 1")

    @property
    def rate(self) -> float:
        """Queries per second in the server scenario."""
        return self.qps if self.qps is not None else 0.7 * 1000 / self.expected_ms


@dataclass(frozen=True)
class LoadSummary:
    """Contents of LoadGen's summary."""

    valid: bool
    line: str
    """`VALID` or `INVALID`, as LoadGen writes it."""
    checks: dict[str, str]
    """LoadGen's conditions, each with its own Yes or NO."""
    figure: str
    """LoadGen's name of the scenario's figure."""
    value: float
    text: str
    """The whole summary."""


@dataclass(frozen=True)
class LoadRun:
    """One scenario on one subject."""

    subject: str
    settings: LoadSettings
    summary: LoadSummary
    samples: Samples
    """All processed frames with their stages, in order."""
    queries: int
    logs: str | None
    """Folder of LoadGen's logs; None if they are not kept."""

    @property
    def trial(self) -> bool:
        """Whether LoadGen's own duration and number of queries were shortened."""
        return self.settings.duration_s is not None


def load_loadgen() -> Any:
    """Import LoadGen. Raises M2HError, naming the extra, if it is not installed."""
    try:
        import mlperf_loadgen  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise missing_extra("mlperf-loadgen", "bench", "--scenario", error=error) from None
    return mlperf_loadgen


def run_scenario(
    subject: Subject,
    settings: LoadSettings,
    timer: Timer,
    *,
    logs: Path | None = None,
    images: int = 1,
    progress: Callable[[int], None] | None = None,
) -> LoadRun:
    """Run a LoadGen scenario on `subject`; its logs are written to the folder `logs`, atomically.

    `images` is the number of different frames of `timer`, and `progress` is called with the number of processed frames.
    Ctrl-C stops the run without writing logs.

    Raises:
        M2HError: LoadGen is not installed or gives no result.
    """
    load_loadgen()
    with scratch_folder("m2h-loadgen-") as folder:
        driver = _Driver(subject, timer, progress)
        driver.run(settings, images, str(folder))
        summary_file = folder / _SUMMARY
        if not summary_file.is_file():
            raise M2HError(f"LoadGen ended {settings.scenario} without a summary")
        summary = parse_summary(summary_file.read_text(encoding="utf-8", errors="replace"))
        if logs is not None:
            _keep(folder, logs)
    return LoadRun(subject.name, settings, summary, driver.samples, driver.queries, str(logs) if logs else None)


class _Driver:
    """Run LoadGen in a separate process and process every sample that it requests.

    LoadGen terminates its process when a test is interrupted, by Ctrl-C or by a failing engine, and it cannot be
    stopped otherwise. A separate process can be killed, and its threads do not interfere with the engine's. The
    overhead, two small messages per sample, is part of LoadGen's figures but not of the stages' times.
    """

    def __init__(self, subject: Subject, timer: Timer, progress: Callable[[int], None] | None) -> None:
        self._subject, self._timer, self._progress = subject, timer, progress
        self.samples = Samples()
        self.queries = 0

    def run(self, settings: LoadSettings, images: int, folder: str) -> None:
        """Run LoadGen to its end; its logs go to `folder`. Raises what a subject raises, and KeyboardInterrupt."""
        asked_here, asked_there = os.pipe()
        answer_there, answer_here = os.pipe()
        words = [json.dumps(asdict(settings)), str(images), folder, str(asked_there), str(answer_there)]
        child = subprocess.Popen(
            [sys.executable, "-m", "m2h_deploy.profiling.loadgen_process", *words],
            pass_fds=(asked_there, answer_there),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # only this process receives Ctrl-C
        )
        try:
            for there in (asked_there, answer_there):
                os.close(there)
            self._answer(asked_here, answer_here)
            _, said = child.communicate()
        finally:
            child.kill()
            child.wait()
            for here in (asked_here, answer_here):
                os.close(here)
        if child.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines() or ["it gives no reason"]
            raise M2HError(f"LoadGen ended {settings.scenario} with an error: {lines[-1]}")

    def _answer(self, asked: int, answer: int) -> None:
        """Process requests until LoadGen closes its end of the pipe."""
        while len(message := os.read(asked, MESSAGE.size)) == MESSAGE.size:
            self.queries, index = MESSAGE.unpack(message)
            self._timer.run(self._subject, index, self.samples)
            with contextlib.suppress(BrokenPipeError):  # LoadGen has ended; its exit code is checked later
                os.write(answer, b"!")
            if self._progress is not None:
                self._progress(len(self.samples.total))


def parse_summary(text: str) -> LoadSummary:
    """Parse LoadGen's summary file. Raises M2HError on a file without a result."""
    result, figure = _RESULT.search(text), _FIGURE.search(text)
    if result is None or figure is None:
        raise M2HError("LoadGen's summary has no result line: keep its logs with --logs and look at them")
    return LoadSummary(
        valid=result[1] == "VALID",
        line=result[1],
        checks={name.strip(): value for name, value in _CHECK.findall(text)},
        figure=" ".join(figure[1].split()),
        value=float(figure[2]),
        text=text,
    )


def check_logs_folder(logs: Path) -> None:
    """Raise M2HError if logs cannot be written to `logs`: a file, or a folder with other files in it."""
    if logs.exists() and not logs.is_dir():
        raise M2HError(f"{logs} is a file: give --logs a folder")
    others = sorted(f.name for f in logs.iterdir() if not f.name.startswith("mlperf_log_")) if logs.is_dir() else []
    if others:
        raise M2HError(f"{logs} holds {others[0]}, which is not a LoadGen log: give --logs another folder")


def _keep(source: Path, logs: Path) -> None:
    """Move the logs of a finished run to `logs`, replacing older ones."""
    check_logs_folder(logs)
    with whole_folder(logs, replace=True) as new:
        for file in source.iterdir():
            shutil.copyfile(file, new / file.name)
