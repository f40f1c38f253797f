"""Time several ways to run the network in turns, so that other load on the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.profiling.clock import Clock, RealClock
from m2h_deploy.profiling.statistics import Summary, summarize

STAGES = ("preprocess", "inference", "postprocess")

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Subject:
    """One way to run the network."""

    name: str
    description: str
    """Engine, version, device and precision as text."""
    run: Callable[[Image], dict[str, float]] = field(repr=False)
    """Function of a frame, uint8 (H, W, 3), that returns the milliseconds of each stage."""
    threads: int | None = None
    """Requested number of threads; None: its own choice."""
    peer: bool = False
    """Whether it is only a comparison, not one of the bundles to measure."""
    on_device: Callable[[int], list[float]] | None = field(default=None, repr=False)
    """Function of a number of runs that returns the engine's milliseconds by the device's events, without copies."""


@dataclass
class Samples:
    """Times of every run of one subject."""

    started: list[float] = field(default_factory=list)
    """Seconds since the measurement began."""
    total: list[float] = field(default_factory=list)
    """Milliseconds of the whole frame, measured around all stages."""
    stages: dict[str, list[float]] = field(default_factory=dict)

    def add(self, started: float, total: float, stages: dict[str, float]) -> None:
        """Add one run: its start in seconds, and milliseconds in total and by stage."""
        self.started.append(started)
        self.total.append(total)
        for name, value in stages.items():
            self.stages.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Summary]:
        """Summarize the milliseconds: `total`, then each stage."""
        return {"total": summarize(self.total)} | {name: summarize(values) for name, values in self.stages.items()}


class Timer:
    """Run subjects and record their times on a common time axis."""

    def __init__(self, images: Sequence[Image], clock: Clock | None = None) -> None:
        self.clock = clock or RealClock()
        self._images = images
        self._start = self.clock.now()

    def run(self, subject: Subject, index: int, samples: Samples) -> None:
        """Run one frame through `subject`; `index` selects the frame cyclically."""
        before = self.clock.now()
        stages = subject.run(self._images[index % len(self._images)])
        after = self.clock.now()
        samples.add((before - self._start) / 1e9, (after - before) / 1e6, stages)

    def seconds(self) -> float:
        """Return the seconds since the measurement began."""
        return (self.clock.now() - self._start) / 1e9


def interleave(
    subjects: Sequence[Subject],
    timer: Timer,
    *,
    duration_s: float,
    min_rounds: int = 10,
    progress: Callable[[float], None] | None = None,
) -> dict[str, Samples]:
    """Run all subjects in turns for at least `duration_s` seconds and at least `min_rounds` rounds.

    A round runs every subject once on the same frame and begins with a different subject each time, because a subject's
    position in the round affects its caches and clocks. `progress` is called with the share that is done.
    """
    samples = {subject.name: Samples() for subject in subjects}
    begin, rounds = timer.seconds(), 0
    while rounds < min_rounds or timer.seconds() - begin < duration_s:
        for place in range(len(subjects)):
            subject = subjects[(place + rounds) % len(subjects)]
            timer.run(subject, rounds, samples[subject.name])
        rounds += 1
        if progress is not None:
            progress(min(rounds / min_rounds, (timer.seconds() - begin) / duration_s if duration_s > 0 else 1.0, 1.0))
    return samples


def frames(count: int, height: int, width: int) -> list[Image]:
    """Render `count` rooms to measure on, uint8 (height, width, 3) BGR."""
    from m2h_deploy.data.rooms.render import render_room

    return [render_room(0, index, height=height, width=width).image for index in range(count)]


def subject_of(runtime: Any, name: str, *, threads: int | None = None, peer: bool = False) -> Subject:
    """Wrap a runtime (see `m2h_deploy.Runtime`) as a subject."""

    def run(image: Image) -> dict[str, float]:
        timings: dict[str, float] = runtime(image).timings
        return timings

    events = getattr(runtime.backend, "gpu_milliseconds", None)  # only backends on a GPU have it
    batch = runtime.manifest.input.batch or 1
    on_device = None if events is None else partial(events, batch=batch)
    return Subject(name, runtime.backend.description, run, threads, peer, on_device)
