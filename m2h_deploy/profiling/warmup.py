"""Warm up before a measurement until the times stop changing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from m2h_deploy.profiling.clock import Clock, RealClock

#: Number of runs whose median is compared with that of as many runs before them.
WINDOW = 8

#: Largest relative difference of two medians that count as equal.
TOLERANCE = 0.02


@dataclass(frozen=True)
class WarmUp:
    """Result of a warm-up."""

    runs: int
    seconds: float
    change: float
    """Change between the medians of the last two windows, as a share of the earlier; inf with fewer windows."""
    stable: bool
    window: int = WINDOW

    def __str__(self) -> str:
        what = f"{self.runs} runs, {self.seconds:.1f} s"
        if self.change == float("inf"):
            return f"NOT stable: {what} were too few to tell"
        medians = f"the last {self.window} and the {self.window} before differ by {100 * self.change:.1f} %"
        return f"stable after {what}: {medians}" if self.stable else f"NOT stable after {what}: {medians}"


def warm_up(
    run: Callable[[], object],
    *,
    window: int = WINDOW,
    tolerance: float = TOLERANCE,
    limit_s: float = 20.0,
    clock: Clock | None = None,
) -> WarmUp:
    """Call `run` until the median time of `window` calls is within `tolerance` of the `window` calls before.

    Gives up after `limit_s` seconds; the result is then marked as not stable.
    """
    clock = clock or RealClock()
    start = clock.now()
    times: list[int] = []
    while True:
        before = clock.now()
        run()
        now = clock.now()
        times.append(now - before)
        change = _change(times, window)
        seconds = (now - start) / 1e9
        if change <= tolerance or seconds >= limit_s:
            return WarmUp(len(times), seconds, change, change <= tolerance, window)


def _change(times: list[int], window: int) -> float:
    if len(times) < 2 * window:
        return float("inf")
    earlier = statistics.median(times[-2 * window : -window])
    return abs(statistics.median(times[-window:]) - earlier) / max(earlier, 1)
