"""Surface normals: the angle between predicted and true normals, in degrees."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.metrics.base import Metric, State, joined, ratio, split

#: Bin width of the histogram that the median is computed from, degrees.
MEDIAN_BIN = 0.05
_BINS = 3600
_WITHIN = (11.25, 22.5, 30.0)
_HEAD = 1 + len(_WITHIN) + 4


def angles_between(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the angles between vectors of any length above 0, (..., 3) and (..., 3), in radians 0..pi, (...).

    atan2(|a x b|, a.b) keeps full precision near 0 and pi, where the arc cosine loses half its digits.
    """
    ax, ay, az = (first[..., i] for i in range(3))
    bx, by, bz = (second[..., i] for i in range(3))
    cross = np.sqrt((ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2)
    return np.asarray(np.arctan2(cross, ax * bx + ay * by + az * bz))


class NormalsMetric(Metric):
    """Mean (mErr of the paper), median and RMSE of the angular error, and shares within 11.25, 22.5 and 30 degrees.

    The figures are pooled over all valid pixels of the data set. Vectors need not have unit length. A predicted
    (0, 0, 0) has no direction; on a valid pixel it counts as an error of 90 degrees, the mean error of a random
    guess. All figures are exact except the median. It is interpolated in a histogram with bins of 0.05 degrees, and
    differs by at most 0.05 degrees from the true (lower) median.

    State, 3608 numbers: valid pixels; pixels within each limit; sums of the angle and of its square (radians),
    `split` in two; the histogram.

    Example:
        >>> metric = NormalsMetric()
        >>> metric.update(np.array([[[0.0, 0.0, 1.0]]]), np.array([[[0.0, 1.0, 0.0]]]))
        >>> metric.compute()["mean"]
        90.0
    """

    task = "normals"
    units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("mean", "median", "rmse"), "degrees"),
        **dict.fromkeys((f"within_{limit:g}" for limit in _WITHIN), "share of the pixels"),
    }
    frame_ndim = 3

    @property
    def state_size(self) -> int:
        """Length of the state vector: 3608."""
        return _HEAD + _BINS

    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """Compute the sums of one frame.

        Args:
            prediction: floating-point (H, W, 3), finite.
            target: floating-point (H, W, 3), (0, 0, 0) where unknown.

        Returns:
            float64 (3608,).

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept.
        """
        given, truth = self._frame(prediction, target)
        truth = self._float(truth, "target")
        given = self._float(given, "prediction")
        valid = truth.any(axis=-1)
        estimate = given[valid]
        angle = angles_between(estimate, truth[valid])
        angle[~estimate.any(axis=-1)] = np.pi / 2
        degrees = np.degrees(angle)
        bins = np.minimum((degrees / MEDIAN_BIN).astype(np.int64), _BINS - 1)
        within = [np.count_nonzero(degrees <= limit) for limit in _WITHIN]
        sums = split([angle.sum(), np.square(angle).sum()])
        return np.concatenate([[angle.size, *within], sums, np.bincount(bins, minlength=_BINS)]).astype(np.float64)

    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN where nothing was counted.

        Returns:
            `mean`, `median` and `rmse` in degrees, `within_11.25`, `within_22.5` and `within_30` as shares 0..1.
        """
        valid, *within = (float(value) for value in state[: _HEAD - 4])
        total, squared = (float(value) for value in joined(state[_HEAD - 4 : _HEAD]))
        shares = {f"within_{limit:g}": ratio(count, valid) for limit, count in zip(_WITHIN, within, strict=True)}
        return {
            "mean": float(np.degrees(ratio(total, valid))),
            "median": _median(state[_HEAD:]),
            "rmse": float(np.degrees(np.sqrt(ratio(squared, valid)))),
            **shares,
        }


def _median(histogram: npt.NDArray[np.float64]) -> float:
    """Compute the angle, in degrees, below which half of the counts lie."""
    cumulative = np.cumsum(histogram)
    if not cumulative[-1]:
        return float("nan")
    half = cumulative[-1] / 2
    index = int(np.searchsorted(cumulative, half))
    before = cumulative[index] - histogram[index]
    return float((index + (half - before) / histogram[index]) * MEDIAN_BIN)
