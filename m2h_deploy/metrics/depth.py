"""Depth: root mean squared error (RMSE) over all valid pixels, and the usual relative errors."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.base import Metric, State, joined, ratio, split

#: Meters. The published evaluators raise smaller predictions to this value before they take the logarithm.
_FLOOR = 1e-9


class DepthMetric(Metric):
    """RMSE, MAE, relative errors and threshold accuracies, pooled over every valid pixel of the data set.

    Pooled means one mean over all pixels, as in the published NYUv2 figures (ASTMT, MTI-Net, ATRC, InvPT). A mean of
    per-image errors would weigh images with much missing depth differently.

    State, 12 numbers: valid pixels; pixels within a factor 1.25, 1.25^2 and 1.25^3; sums of squared,
    absolute, relative and squared log error, `split` in two.

    Args:
        clamp: (lowest, highest), in meters, that predictions are clamped to first, for instance (1e-3, 10.0), the
            range of the sensor; None for no clamping.

    Example:
        >>> metric = DepthMetric()
        >>> metric.update(np.array([[2.0, 9.0]]), np.array([[1.0, 0.0]]))
        >>> metric.compute()["rmse"]
        1.0
    """

    task = "depth"
    units: ClassVar[dict[str, str]] = {
        "rmse": "m",
        "mae": "m",
        "abs_rel": "share of the depth",
        "log_rmse": "natural logarithm",
        **dict.fromkeys(("delta1", "delta2", "delta3"), "share of the pixels"),
    }

    def __init__(self, clamp: tuple[float, float] | None = None) -> None:
        if clamp is not None and not 0 < clamp[0] < clamp[1] < float("inf"):
            raise M2HError(f"depth metric: clamp {clamp} must be (lowest, highest) meters with 0 < lowest < highest")
        self.clamp = None if clamp is None else (float(clamp[0]), float(clamp[1]))
        super().__init__()

    @property
    def state_size(self) -> int:
        """Length of the state vector: 12."""
        return 12

    @property
    def settings(self) -> Hashable:
        """The clamp in meters, or None; equal for metrics that can be merged."""
        return (self.clamp,)

    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """Compute the sums of one frame.

        Args:
            prediction: floating-point (H, W), meters, finite.
            target: floating-point (H, W), meters, 0 where unknown, never negative.

        Returns:
            float64 (12,).

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept.
        """
        given, truth = self._frame(prediction, target)
        truth = self._float(truth, "target")
        given = self._float(given, "prediction")
        if truth.min() < 0:
            raise M2HError(f"depth metric: target has a depth of {truth.min():g} m; mark unknown depth as 0")
        valid = truth > 0
        expected, estimate = truth[valid], given[valid]
        if self.clamp is not None:
            estimate = estimate.clip(*self.clamp)
        error = np.abs(estimate - expected)
        positive = np.maximum(estimate, _FLOOR)
        factor = np.maximum(positive / expected, expected / positive)
        log_error = np.log(positive) - np.log(expected)
        sums = [np.square(error).sum(), error.sum(), (error / expected).sum(), np.square(log_error).sum()]
        within = [np.count_nonzero(factor < 1.25**power) for power in (1, 2, 3)]
        return np.concatenate([[expected.size, *within], split(sums)]).astype(np.float64)

    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN where nothing was counted.

        Returns:
            `rmse` and `mae` in meters, `abs_rel`, `log_rmse` (natural logarithm), `delta1` to `delta3` as shares 0..1.
        """
        valid, *within = (float(value) for value in state[:4])
        squared, absolute, relative, squared_log = (float(value) for value in joined(state[4:]))
        return {
            "rmse": float(np.sqrt(ratio(squared, valid))),
            "mae": ratio(absolute, valid),
            "abs_rel": ratio(relative, valid),
            "log_rmse": float(np.sqrt(ratio(squared_log, valid))),
            "delta1": ratio(within[0], valid),
            "delta2": ratio(within[1], valid),
            "delta3": ratio(within[2], valid),
        }
