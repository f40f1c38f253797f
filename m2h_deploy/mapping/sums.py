"""Sums of one variant over segments of frames, from which its figures and their intervals are computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.mapping.plan import Plan
from m2h_deploy.metrics import DepthMetric, SemanticsMetric
from m2h_deploy.metrics.temporal import TemporalMetric, View

Floats = NDArray[np.float64]

#: Width of a bin and largest absolute value of the logarithm of predicted by true depth.
_BIN, _SPAN = 1e-4, 5.0


@dataclass(frozen=True, eq=False)
class Estimate:
    """Depth and labels of one frame, predicted, filtered or true."""

    depth: NDArray[np.float32]
    """(H, W), meters, 0 unknown."""
    labels: NDArray[np.uint8] | None
    """(H, W), class index in the data's order, 255 unlabeled."""


@dataclass(frozen=True, eq=False)
class Reference:
    """True depth and labels of one frame, as in `Frame`; None where the sequence has none or they are not needed."""

    depth: NDArray[np.float32] | None
    labels: NDArray[np.uint8] | None


class SegmentSums:
    """Sums of the metrics of single frames and of consecutive frames, for each segment."""

    def __init__(self, plan: Plan, classes: int, *, judge_labels: bool) -> None:
        """Start with empty sums.

        Args:
            plan: The frames.
            classes: Number of classes of the labels, without `unknown`.
            judge_labels: Whether the labels can be compared with those of the sequence.
        """
        height, width = plan.sequence.size
        self._depth, self._temporal = DepthMetric(), TemporalMetric(plan.sequence.intrinsics, height, width)
        self._semantics = semantics_metric(classes) if judge_labels else None
        sizes = {"depth": self._depth.state_size, "temporal": self._temporal.state_size}
        if self._semantics is not None:
            sizes["semantics"] = self._semantics.state_size
        self.sums: dict[str, Floats] = {name: np.zeros((plan.segments, size)) for name, size in sizes.items()}

    def add(self, segment: int, truth: Reference, pose: Pose, estimate: Estimate, *, follows: bool) -> None:
        """Add one frame; `follows` says whether it is compared with the frame of the last call."""
        if truth.depth is not None:
            # Pixels without an estimate are not judged.
            depth = np.where(estimate.depth > 0, truth.depth, np.float32(0))
            self.sums["depth"][segment] += self._depth.frame_state(estimate.depth, depth)
        if self._semantics is not None and truth.labels is not None and estimate.labels is not None:
            # 255 becomes 0, the label of `unknown`.
            labels = (estimate.labels + np.uint8(1)).astype(np.uint8)
            self.sums["semantics"][segment] += self._semantics.frame_state(labels, truth.labels)
        if not follows:
            self._temporal.cut()
        view = View(pose, estimate.depth, estimate.labels, truth.depth)
        self.sums["temporal"][segment] += self._temporal.frame_state(view)


def semantics_metric(classes: int) -> SemanticsMetric:
    """Return the metric of labels that are stored with 0 for `unknown`."""
    return SemanticsMetric(classes + 1, unknown=True)


def frame_figures(name: str, state: Floats) -> dict[str, float]:
    """Compute the figures of one metric from a sum of states: rmse, abs_rel; miou; tae, label_flicker, scale_drift."""
    if name == "depth":
        found = DepthMetric().compute_from(state)
        return {key: found[key] for key in ("rmse", "abs_rel")}
    if name == "temporal":
        found = TemporalMetric(Intrinsics(1, 1, 0, 0), 1, 1).compute_from(state)
        return {key: found[key] for key in ("tae", "label_flicker", "scale_drift")}
    hits, predicted, expected = state.reshape(3, -1)
    present = expected > 0  # as in `verify`: all rows are judged by the same classes
    union = (predicted + expected - hits)[present]
    return {"miou": float(np.mean(hits[present] / union)) if present.any() else float("nan")}


class RatioHistogram:
    """Median of predicted by true depth over all pixels of a sequence, in bounded memory, to 0.01 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(int(2 * _SPAN / _BIN) + 1, np.int64)

    def add(self, depth: NDArray[np.float32], truth: NDArray[np.float32]) -> None:
        """Add the pixels of a frame where both depths are known."""
        both = (depth > 0) & (truth > 0)
        logs = np.clip(np.log(depth[both]) - np.log(truth[both]), -_SPAN, _SPAN)
        self._counts += np.bincount(np.rint((logs + _SPAN) / _BIN).astype(np.int64), minlength=len(self._counts))

    @property
    def median(self) -> float | None:
        """The median; None if there are no pixels."""
        total = np.cumsum(self._counts)
        if total[-1] == 0:
            return None
        return float(np.exp(np.searchsorted(total, (total[-1] + 1) // 2) * _BIN - _SPAN))


def to_labels(stored: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """Convert labels as stored (index + 1, 0 unlabeled) to labels in memory."""
    return None if stored is None else (stored - np.uint8(1)).astype(np.uint8)
