"""Percentiles and ratios with confidence intervals from order statistics, for any distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2h_deploy.errors import M2HError

#: Probability that the true value lies outside the interval, on each side.
_TAIL = 0.025

#: A larger coefficient of variation indicates that something disturbed the runs.
STEADY = 0.025

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; an end is None if there are too few samples to bound it."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Summary:
    """Statistics of a series of durations, in the unit of its samples."""

    count: int
    mean: float
    least: float
    most: float
    variation: float
    """Coefficient of variation: standard deviation over mean."""
    p50: Estimate
    p90: Estimate
    p99: Estimate

    @property
    def steady(self) -> bool:
        """Whether the coefficient of variation is at most `STEADY`."""
        return self.variation <= STEADY


def percentile(samples: ArrayLike, share: float) -> Estimate:
    """Return the smallest sample that at least a `share` (0 to 1, exclusive) of all samples do not exceed.

    The interval's ends are samples too: B of n independent samples lie below the true percentile, B is binomial, so the
    ranks that enclose B with 95 % enclose the percentile (David and Nagaraja 2003, "Order Statistics", 7.1). If samples
    depend on their predecessors, as on a machine that heats up, the interval is too narrow.

    Raises:
        M2HError: There are no samples.
    """
    values = np.sort(np.asarray(samples, np.float64).ravel())
    if not len(values):
        raise M2HError("no samples: nothing was measured")
    count = len(values)
    below = _binomial(count, share)  # below[k]: probability that at most k samples lie below the percentile
    lower = int(np.searchsorted(below, _TAIL, side="right"))
    upper = int(np.searchsorted(below, 1 - _TAIL, side="left")) + 1
    return Estimate(
        value=float(values[max(0, math.ceil(share * count - 1e-9) - 1)]),
        low=float(values[lower - 1]) if lower > 0 else None,
        high=float(values[upper - 1]) if upper <= count else None,
    )


def _binomial(count: int, share: float) -> Array:
    """Return the distribution function of the binomial distribution at 0 to `count`."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])
    k = np.arange(count + 1)
    chances = logs[count] - logs[k] - logs[count - k] + k * math.log(share) + (count - k) * math.log1p(-share)
    return np.asarray(np.minimum(np.cumsum(np.exp(chances)), 1.0))


def summarize(samples: ArrayLike) -> Summary:
    """Return mean, extremes, variation and percentiles of durations. Raises M2HError without samples."""
    values = np.asarray(samples, np.float64).ravel()
    p50 = percentile(values, 0.5)
    mean = float(values.mean())
    return Summary(
        count=len(values),
        mean=mean,
        least=float(values.min()),
        most=float(values.max()),
        variation=float(values.std(ddof=1)) / mean if len(values) > 1 and mean > 0 else 0.0,
        p50=p50,
        p90=percentile(values, 0.9),
        p99=percentile(values, 0.99),
    )


def speedup(baseline: Sequence[float], samples: Sequence[float]) -> Estimate:
    """Return how many times faster `samples` are than `baseline`: the median over rounds of baseline over sample.

    Both were measured in turns, one each per round, so a temporary slowdown affects both and cancels out.

    Raises:
        M2HError: The numbers of samples differ.
    """
    if len(baseline) != len(samples):
        raise M2HError(f"{len(baseline)} runs cannot be paired with {len(samples)}: measure both in the same rounds")
    ratios = np.asarray(baseline, np.float64) / np.asarray(samples, np.float64)
    return percentile(ratios, 0.5)
