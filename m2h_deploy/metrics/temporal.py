"""Temporal consistency of depth and labels along a sequence: reprojection error, label flicker, scale drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.metrics.base import State, ratio
from m2h_deploy.temporal.warp import Warp, motion_between

#: A warped pixel is visible in the other frame if its depth there differs by less than this share.
_VISIBLE = 0.03


@dataclass(frozen=True, eq=False)
class View:
    """What is known of one frame; arrays are (H, W)."""

    pose: Pose
    depth: NDArray[np.float32]
    """Predicted, meters."""
    labels: NDArray[np.uint8] | None = None
    """Predicted; 255 where there is none."""
    true_depth: NDArray[np.float32] | None = None
    """Meters, 0 where unknown."""


class TemporalMetric:
    """Consistency of consecutive frames; like `Metric`, it adds one vector a frame.

    - TAE, the temporal alignment error of Video Depth Anything (Chen et al. 2025): each depth map is projected into the
      next frame and back, and compared with the depth there, as a share of it; the mean over pixels, then over both
      directions and all pairs. Unlike the published code, the nearest of several points that meet in a pixel counts,
      not the last one, and depth is metric, so nothing is fitted to the true depth first. It is not 0 for the true
      depth, because occlusions and rounding to pixels are in it.
    - Label flicker: share of the pixels that both frames see whose label changes. The true depth decides what both
      see, if it is known: otherwise the predicted depth does.
    - Scale drift: standard deviation over frames of the logarithm of the scale, which is the median over pixels of
      predicted depth by true depth.

    Args:
        intrinsics: of the frames, pixels.
        height: of the frames, pixels.
        width: of the frames, pixels.
    """

    units: ClassVar[dict[str, str]] = {
        "tae": "share of the depth",
        "label_flicker": "share of the pixels",
        "scale": "predicted depth by true depth",
        "scale_drift": "natural logarithm",
    }

    #: Pairs, sum of their errors; changed and visible pixels; frames with a scale, sums of its logarithm and square.
    state_size = 7

    def __init__(self, intrinsics: Intrinsics, height: int, width: int) -> None:
        self._warp = Warp(intrinsics, height, width)
        self._before: View | None = None
        self.state: State = np.zeros(self.state_size)

    def frame_state(self, view: View) -> State:
        """Compute the sums of one frame, which is compared with the frame of the last call.

        Returns:
            float64 (7,).
        """
        before, self._before = self._before, view
        pair = self._pair(before, view) if before is not None else [0.0] * 4
        return np.array([*pair, *_scale(view)])

    def update(self, view: View) -> None:
        """Add one frame."""
        self.state = self.state + self.frame_state(view)

    def cut(self) -> None:
        """Forget the last frame: the next one is not compared with it."""
        self._before = None

    def compute(self) -> dict[str, float]:
        """Compute the figures of all frames added so far."""
        return self.compute_from(self.state)

    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN where nothing was counted.

        Returns:
            `tae` and `label_flicker` as shares 0..1, `scale` as a factor (geometric mean), `scale_drift` as a natural
            logarithm.
        """
        pairs, errors, changed, visible, frames, logs, squares = (float(value) for value in state)
        mean = ratio(logs, frames)
        return {
            "tae": ratio(errors, pairs),
            "label_flicker": ratio(changed, visible),
            "scale": float(np.exp(mean)),
            "scale_drift": float(np.sqrt(max(ratio(squares, frames) - mean * mean, 0.0))) if frames else float("nan"),
        }

    def _pair(self, before: View, after: View) -> list[float]:
        there, back = motion_between(before.pose, after.pose), motion_between(after.pose, before.pose)
        errors = [
            _mean_error(self._warp.forward(before.depth, there).depth, after.depth),
            _mean_error(self._warp.forward(after.depth, back).depth, before.depth),
        ]
        known = [error for error in errors if error is not None]
        return [float(bool(known)), sum(known) / max(len(known), 1), *self._flicker(before, after, there)]

    def _flicker(self, before: View, after: View, motion: Pose) -> tuple[int, int]:
        """Count the labels that change, and the labels that can be compared."""
        if before.labels is None or after.labels is None:
            return 0, 0
        true = before.true_depth is not None and after.true_depth is not None
        old, new = (before.true_depth, after.true_depth) if true else (before.depth, after.depth)
        assert old is not None and new is not None
        warped = self._warp.forward(old, motion)
        both = (warped.depth > 0) & (new > 0) & (np.abs(warped.depth - new) < _VISIBLE * new)
        first, second = before.labels.reshape(-1)[warped.source[both]], after.labels[both]
        labeled = (first != 255) & (second != 255)
        return int(np.count_nonzero((first != second) & labeled)), int(np.count_nonzero(labeled))


def _mean_error(warped: NDArray[np.float32], depth: NDArray[np.float32]) -> float | None:
    """Return the mean absolute relative error where both depths are known; None where they never are."""
    both = (warped > 0) & (depth > 0)
    if not both.any():
        return None
    expected = depth[both].astype(np.float64)
    return float(np.mean(np.abs(warped[both] - expected) / expected))


def _scale(view: View) -> tuple[float, float, float]:
    """Return 1, the logarithm of the scale and its square; zeros where the scale is unknown."""
    if view.true_depth is None:
        return 0.0, 0.0, 0.0
    both = (view.true_depth > 0) & (view.depth > 0)
    if not both.any():
        return 0.0, 0.0, 0.0
    scale = float(np.log(np.median(view.depth[both] / view.true_depth[both])))
    return 1.0, scale, scale * scale
