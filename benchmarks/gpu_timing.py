"""One definition of device time for PyTorch, TensorRT and ONNX Runtime, and the measured limits of the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from m2h_deploy.profiling import percentile


@dataclass(frozen=True)
class Times:
    """Milliseconds of one run on the device, without copies from and to the host."""

    queued: float
    """Many runs enqueued back to back between two events, divided by their number: throughput."""
    single: float
    """Median of runs that start on an idle device, between two events each: what a robot sees."""
    single_p99: float


class WallEvent:
    """Stands in for torch.cuda.Event on a CPU, where the work is done when the call returns."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def record(self, stream: object = None) -> None:
        """Record the current time."""
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Do nothing: the event has passed."""

    def elapsed_time(self, end: WallEvent) -> float:
        """Return the milliseconds from this event to `end`."""
        return 1e3 * (end._seconds - self._seconds)


class Timer:
    """Measure `runs` runs after a warm-up."""

    def __init__(self, runs: int, event: Callable[[], Any] = WallEvent) -> None:
        self.runs, self._event = runs, event

    @classmethod
    def on(cls, device: torch.device, runs: int) -> Timer:
        """Return the timer of a device: CUDA events, or wall time on a CPU."""
        return cls(runs, partial(torch.cuda.Event, enable_timing=True) if device.type == "cuda" else WallEvent)

    def times(self, enqueue: Callable[[], Any], stream: Any = None) -> Times:
        """Measure `enqueue`, which enqueues one run on `stream`; None: PyTorch's current stream."""
        start, end = self._event(), self._event()
        for _ in range(max(3, self.runs // 10)):
            enqueue()
        end.record(stream)
        end.synchronize()
        start.record(stream)
        for _ in range(self.runs):
            enqueue()
        end.record(stream)
        end.synchronize()
        queued = start.elapsed_time(end) / self.runs
        singles = []
        for _ in range(self.runs):
            start.record(stream)
            enqueue()
            end.record(stream)
            end.synchronize()
            singles.append(start.elapsed_time(end))
        return Times(queued, statistics.median(singles), percentile(singles, 0.99).value)

    def frames(self, run: Callable[[], Any]) -> float:
        """Return the median wall time in milliseconds of `run`, which waits for its results."""
        run()
        walls = []
        for _ in range(self.runs):
            start = time.perf_counter()
            run()
            walls.append(1e3 * (time.perf_counter() - start))
        return statistics.median(walls)


@dataclass(frozen=True)
class Roof:
    """Measured limits of the device."""

    matrix_tflops: float
    copy_gbs: float

    @classmethod
    def measure(cls, timer: Timer, device: torch.device, half: torch.dtype) -> Roof:
        """Measure the rate of a square matrix product in `half` and that of a copy in the device's memory."""
        side, megabytes = (8192, 1024) if device.type == "cuda" else (1024, 64)
        a, b = (torch.rand(side, side, device=device, dtype=half) for _ in range(2))
        source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        product, copy = (timer.times(run) for run in (lambda: a @ b, lambda: target.copy_(source)))
        return cls(
            matrix_tflops=2e-9 * side**3 / min(product.queued, product.single),
            copy_gbs=2 * source.numel() / min(copy.queued, copy.single) / 1e6,
        )

    def least_ms(self, macs: int, nbytes: int) -> float:
        """Return the least time in milliseconds of a graph with `macs` multiply-adds that moves `nbytes` bytes."""
        return 1e3 * max(2 * macs / (self.matrix_tflops * 1e12), nbytes / (self.copy_gbs * 1e9))
