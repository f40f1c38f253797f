"""Measure the difference of an engine's raw outputs from the reference's, by frame and over all frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.metrics.bootstrap import Interval, interval, resample
from m2h_deploy.numerics import BEST_PSNR, psnr, span_of

Output = NDArray[np.float32]
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class TensorResult:
    """One output over all frames, before postprocessing."""

    output: str
    unit: str
    """Unit of `max_error` and `mean_error`; for edges logit, or probability if the graph ends in it."""
    max_error: float
    mean_error: float
    psnr: float
    """20 log10(range of the reference / root mean square error), dB; at most 138, the limit of float32. The range is at
    least a quarter of the reference's root mean square, for outputs that hardly vary."""
    psnr_interval: Interval
    cosine: float
    label_agreement: float | None
    """Semantics only: share of pixels with the same largest logit, 0..1."""
    nonfinite: int
    """Number of NaN and infinite values of the engine. They count as 0, and a single one makes PSNR 0."""


def tensor_sums(output: str, reference: Output, engine: Output, nonfinite: int) -> Sums:
    """Return one frame's sums, float64 (12,), of finite values (C, H, W); `nonfinite` is the engine's count.

    In order: number of values; sums of the error, of its square, of the products ab, aa, bb; pixels with the same
    label; pixels; `nonfinite`; then the reference's smallest and largest value and the largest error.
    """
    a, b = reference.astype(np.float64).ravel(), engine.astype(np.float64).ravel()
    error = np.abs(a - b)
    agree = float("nan")
    if output == "semantics":
        agree = float(np.count_nonzero(reference.argmax(0) == engine.argmax(0)))
    pixels = float(reference[0].size)
    sums = [a.size, error.sum(), error @ error, a @ b, a @ a, b @ b, agree, pixels, nonfinite]
    return np.array([*sums, a.min(), a.max(), error.max()])


class TensorComparison:
    """Add up one output over frames; memory grows by nine numbers per frame."""

    def __init__(self, output: str, unit: str) -> None:
        self.output, self.unit = output, unit
        self._sums: list[Sums] = []
        self._low, self._high, self._largest = np.inf, -np.inf, 0.0

    def add(self, sums: Sums) -> None:
        """Add the sums of one frame, as returned by `tensor_sums`."""
        low, high, largest = (float(value) for value in sums[9:])
        self._sums.append(sums[:9])
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._largest = max(self._largest, largest)

    def result(self, weights: NDArray[np.float64]) -> TensorResult:
        """Return the figures of all frames; `weights` are the bootstrap's draws."""
        states = np.array(self._sums)
        total = states.sum(axis=0)
        size, error, _, ab, aa, bb, agree, pixels, nonfinite = (float(v) for v in total)
        decibels = self._psnr(total)
        low, high = interval(decibels, resample(weights, states, self._psnr), len(states))
        return TensorResult(
            output=self.output,
            unit=self.unit,
            max_error=self._largest,
            mean_error=error / size,
            psnr=decibels,
            psnr_interval=(low, min(high, BEST_PSNR)),
            cosine=_cosine(ab, aa, bb),
            label_agreement=agree / pixels if self.output == "semantics" else None,
            nonfinite=int(nonfinite),
        )

    def _psnr(self, total: NDArray[np.float64]) -> float:
        if total[8]:
            return 0.0
        return psnr(float(total[2] / total[0]), span_of(self._low, self._high, float(total[4] / total[0])))


def _cosine(ab: float, aa: float, bb: float) -> float:
    if aa == 0 or bb == 0:
        return 1.0 if aa == bb else 0.0
    return min(1.0, ab / float(np.sqrt(aa) * np.sqrt(bb)))
