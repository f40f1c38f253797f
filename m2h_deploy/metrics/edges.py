"""Object boundaries: the F-measure at the best threshold for the whole data set (odsF)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.base import Metric, State
from m2h_deploy.metrics.matching import BoundaryMatcher
from m2h_deploy.metrics.thinning import suppress_non_maxima, thin, thin_above

#: i/100 for i = 1..99.
THRESHOLDS = np.arange(1, 100) / 100
#: Largest distance of a match on NYUv2, as a fraction of the image diagonal (8.8 pixels at 640x480). ATRC and
#: InvPT set this value in SEISM, whose default, 0.0075, is for BSDS500 and PASCAL-Context.
NYUV2_MAX_DISTANCE = 0.011

_COUNTS = 4


class EdgesMetric(Metric):
    """odsF, oisF and average precision as SEISM and the BSDS benchmark compute them, without MATLAB.

    For each frame, the probability map goes through non-maximum suppression once, and the target is thinned. At each
    of the thresholds 0.01 .. 0.99 the pixels strictly above it are thinned and matched one to one with target pixels
    that are at most `max_distance` times the image diagonal away. Precision is matched / predicted, recall matched /
    target pixels, both pooled over the data set for each threshold. odsF is the best F over the thresholds; oisF pools
    each frame at its own best threshold.

    Differences from SEISM: the matching is exactly optimal (CSA's, which samples the edges to outliers, misses up to
    about 0.1 % of the pairs); probabilities are not rounded to the 8 bits of a PNG; `ap` is divided by its 101 recall
    levels (SEISM divides by 100, and can exceed 1).

    State, 400 integers: for each threshold the matched predicted, predicted, matched target and target
    pixels, then the same four at the frame's own best threshold.

    Args:
        max_distance: largest distance of a match, as a fraction of the image diagonal, 0..1.
        suppress: apply non-maximum suppression; False for maps that are thin already. Without it boundaries on the
            image border are kept.

    Example:
        >>> metric = EdgesMetric()
        >>> truth = np.zeros((32, 32), np.uint8)
        >>> truth[8:24, 16] = 1
        >>> metric.update(truth.astype(np.float32), truth)
        >>> metric.compute()["odsF"]
        1.0
    """

    task = "edges"
    units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("odsF", "odsP", "odsR", "oisF", "ap"), "share, 0 to 1"),
        "odsT": "probability",
    }

    def __init__(self, max_distance: float = NYUV2_MAX_DISTANCE, suppress: bool = True) -> None:
        if not 0 <= max_distance < 1:
            raise M2HError(f"edges metric: max_distance is {max_distance}, must be a share of the diagonal, 0..1")
        self.max_distance = float(max_distance)
        self.suppress = bool(suppress)
        super().__init__()

    @property
    def state_size(self) -> int:
        """Length of the state vector: 400."""
        return _COUNTS * (len(THRESHOLDS) + 1)

    @property
    def settings(self) -> Hashable:
        """`max_distance` and `suppress`; equal for metrics that can be merged."""
        return (self.max_distance, self.suppress)

    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """Count the matches of one frame.

        Args:
            prediction: floating-point (H, W), probability 0..1 (not logits), at least 2x2 pixels.
            target: bool or integer (H, W), 1 on a boundary, else 0.

        Returns:
            float64 (400,).

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept.
        """
        probability, truth = self._checked(prediction, target)
        thinned_truth = thin(truth)
        strength = suppress_non_maxima(probability) if self.suppress else probability
        candidates, selected = thin_above(strength, THRESHOLDS)
        matcher = BoundaryMatcher(thinned_truth, candidates, self.max_distance * float(np.hypot(*truth.shape)))
        counts = np.zeros((len(THRESHOLDS) + 1, _COUNTS))
        counts[:-1, 1] = selected.sum(axis=1)
        counts[:-1, 3] = np.count_nonzero(thinned_truth)
        # Descending thresholds mostly add pixels, so that most of the matching is reused.
        for i in range(len(THRESHOLDS) - 1, -1, -1):
            counts[i, 0] = counts[i, 2] = matcher.count(selected[i])
        counts[-1] = counts[int(np.argmax(_f_measure(*_precision_recall(counts[:-1]))))]
        return counts.ravel()

    def _checked(
        self, prediction: npt.ArrayLike, target: npt.ArrayLike
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        given, truth = self._frame(prediction, target)
        if min(truth.shape) < 2:
            raise M2HError(f"edges metric: frame {truth.shape} is smaller than 2x2 pixels")
        if not (truth.dtype == np.bool_ or np.issubdtype(truth.dtype, np.integer)):
            raise M2HError(f"edges metric: target has dtype {truth.dtype}, needs bool or integers 0 and 1")
        if not ((truth == 0) | (truth == 1)).all():
            raise M2HError(f"edges metric: target values {truth.min()}..{truth.max()}, needs 1 on a boundary, else 0")
        probability = self._float(given, "prediction")
        if probability.min() < 0 or probability.max() > 1:
            raise M2HError(
                f"edges metric: prediction values {probability.min():g}..{probability.max():g} leave 0..1; "
                "apply the sigmoid to logits first"
            )
        return probability.astype(np.float32), truth.astype(bool)

    def precision_recall(self, state: State | None = None) -> tuple[npt.NDArray, npt.NDArray]:
        """Compute precision and recall, 0..1, at each of the 99 thresholds.

        Args:
            state: a sum of frame states; None for all frames added so far.

        Returns:
            Two float64 arrays (99,).
        """
        counts = (self.state if state is None else state).reshape(-1, _COUNTS)
        return _precision_recall(counts[:-1])

    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN if no target has a boundary.

        Returns:
            `odsF`, its `odsP`, `odsR` and `odsT` (threshold), `oisF` and `ap`, all 0..1.
        """
        counts = state.reshape(-1, _COUNTS)
        if not counts[0, 3]:
            return dict.fromkeys(("odsF", "odsP", "odsR", "odsT", "oisF", "ap"), float("nan"))
        precision, recall = _precision_recall(counts[:-1])
        f = _f_measure(precision, recall)
        best = int(np.argmax(f))
        return {
            "odsF": float(f[best]),
            "odsP": float(precision[best]),
            "odsR": float(recall[best]),
            "odsT": float(THRESHOLDS[best]),
            "oisF": float(_f_measure(*_precision_recall(counts[-1:]))[0]),
            "ap": _average_precision(precision, recall),
        }


def _precision_recall(counts: npt.NDArray[np.float64]) -> tuple[npt.NDArray, npt.NDArray]:
    """Compute both from rows (matched predicted, predicted, matched target, target pixels).

    Precision is 1 if nothing is predicted, as in SEISM.
    """
    matched_predicted, predicted, matched_target, expected = counts.T
    precision = np.divide(matched_predicted, predicted, out=np.ones(len(counts)), where=predicted > 0)
    recall = np.divide(matched_target, expected, out=np.zeros(len(counts)), where=expected > 0)
    return precision, recall


def _f_measure(precision: npt.NDArray, recall: npt.NDArray) -> npt.NDArray[np.float64]:
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)


def _average_precision(precision: npt.NDArray, recall: npt.NDArray) -> float:
    """Average the precision, interpolated between thresholds, over recall 0, 0.01 .. 1; it is 0 at recalls not reached.

    As in SEISM, a detector with a single recall has no curve and gets 0.
    """
    levels = np.unique(recall)
    if levels.size < 2:
        return 0.0
    best = np.array([precision[recall == level].max() for level in levels])
    at = np.interp(np.arange(101) / 100, levels, best, left=0.0, right=0.0)
    return float(at.mean())
