"""Histograms of absolute activations, and the clipping threshold that each calibrator derives from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.choices import Calibrator

BINS = 2048

#: Levels of the positive half of INT8.
LEVELS = 127

#: Share of values, in percent, that the percentile calibrator does not clip.
PERCENTILE = 99.99


@dataclass(frozen=True)
class Histogram:
    """Counts of absolute values in BINS equal bins over 0..limit, and the largest value seen."""

    counts: NDArray[np.int64]
    limit: float
    largest: float

    @staticmethod
    def empty() -> Histogram:
        """Return a histogram without values."""
        return Histogram(np.zeros(BINS, np.int64), 0.0, 0.0)

    def add(self, values: NDArray[np.floating]) -> Histogram:
        """Return this histogram with `values` added; its range doubles, merging bins in pairs, until they fit."""
        magnitudes = np.abs(values, dtype=np.float32).ravel()
        peak = float(magnitudes.max(initial=0.0))
        counts, limit = self.counts, self.limit or peak
        if limit == 0.0:
            return self
        while limit < peak:
            merged = counts.reshape(BINS // 2, 2).sum(axis=1)
            counts, limit = np.concatenate((merged, np.zeros(BINS // 2, np.int64))), 2 * limit
        index = np.minimum((magnitudes * np.float32(BINS / limit)).astype(np.int32), BINS - 1)
        return Histogram(counts + np.bincount(index, minlength=BINS), limit, max(self.largest, peak))


def threshold(histogram: Histogram, method: Calibrator, percentile: float = PERCENTILE) -> float:
    """Return the absolute value at which INT8 saturates; 0.0 if only zeros were seen.

    `max` takes the largest value, `percentile` the value below which `percentile` of all values lie, `entropy` the one
    that keeps most information: least Kullback-Leibler divergence between the clipped distribution and its 127-level
    version (Migacz, 8-bit inference with TensorRT, GTC 2017).
    """
    if histogram.limit == 0.0 or method == "max":
        return histogram.largest
    if method == "percentile":
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        last = int(np.searchsorted(share, percentile / 100))
    else:
        counts = histogram.counts.astype(np.float64)
        # A ReLU's zeros fill the first bin. Every scale represents zero exactly, so they must not dominate.
        counts[0] = min(counts[0], counts[1])
        last = _least_divergence(counts)
    return min((last + 1) * histogram.limit / BINS, histogram.largest)


def _least_divergence(counts: NDArray[np.float64]) -> int:
    """Return the index of the last bin that the best clipping keeps."""
    occupied = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else BINS
    # A stride of 8 bins is 0.4 % of the range, too little to matter for a scale.
    candidates = [*range(LEVELS + 1, occupied, 8), occupied]
    divergences = [_divergence(counts, keep) for keep in candidates]
    return candidates[int(np.argmin(divergences))] - 1


def _divergence(counts: NDArray[np.float64], keep: int) -> float:
    """Return the KL divergence between the first `keep` bins, with the rest added to the last, and their 127 levels."""
    kept = counts[:keep]
    reference = kept.copy()
    reference[-1] += counts[keep:].sum()
    level = np.minimum(np.arange(keep) * LEVELS // keep, LEVELS - 1)
    sums = np.bincount(level, weights=kept, minlength=LEVELS)
    filled = np.bincount(level, weights=kept > 0, minlength=LEVELS)
    mean = np.divide(sums, filled, out=np.zeros(LEVELS), where=filled > 0)
    quantized = np.where(kept > 0, mean[level], 0.0)
    seen = reference > 0
    if quantized.sum() == 0:
        return np.inf
    p = reference[seen] / reference.sum()
    # A bin filled only by clipping would make the divergence infinite: it gets a negligible share.
    q = np.maximum(quantized[seen] / quantized.sum(), 1e-9)
    return float(np.sum(p * np.log(p / q)))
