"""Measure the limits of this machine: the rate of a large matrix product and of a large copy.

A block cannot be faster than its arithmetic at the first rate nor than its traffic at the second (Williams, Waterman
and Patterson 2009, "Roofline"). The product is numpy's, so it is float32 on the CPU; an engine that computes in
bfloat16 or INT8, or keeps its maps in the cache, can exceed either limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

#: Side length of the matrices: large enough for full speed, small enough for a Raspberry Pi.
_SIDE = 1024

#: Number of bytes to copy: more than the caches of one core hold.
_COPY = 1 << 27

_REPEATS = 5


@dataclass(frozen=True)
class Roofline:
    """The two measured limits of this machine."""

    gflops: float
    """10^9 float32 operations per second; a multiply-accumulate is two."""
    gigabytes: float
    """10^9 bytes per second, read and written."""
    threads: int
    threads_held: bool
    """Whether numpy's threads could be set, which needs threadpoolctl; otherwise the product used its own number."""

    def least_ms(self, macs: int, nbytes: int) -> float:
        """Return the least milliseconds in which this machine can compute `macs` and move `nbytes`."""
        return max(2 * macs / self.gflops, nbytes / self.gigabytes) / 1e6


def measure_roofline(threads: int) -> Roofline:
    """Measure the best of a few products and copies on `threads` threads; takes about a second."""
    left, right = (np.random.default_rng(seed).random((_SIDE, _SIDE), np.float32) for seed in (0, 1))
    result = np.empty((_SIDE, _SIDE), np.float32)
    with _numpy_threads(threads) as held:
        product = _best(lambda: np.matmul(left, right, out=result))
    source = np.zeros(_COPY, np.uint8)
    target = np.ones(_COPY, np.uint8)  # both touched, so that their pages exist
    pieces = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        copy = _best(lambda: list(pool.map(lambda piece: np.copyto(*piece), pieces)))
    return Roofline(2e-9 * _SIDE**3 / product, 2e-9 * _COPY / copy, threads, held)


def _best(work: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few runs, after one warm-up run."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


@contextlib.contextmanager
def _numpy_threads(threads: int) -> Iterator[bool]:
    """Limit numpy's linear algebra to `threads` threads; yield whether that is possible."""
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        yield False
        return
    with threadpool_limits(threads, user_api="blas"):
        yield True
