"""TemporalFilter: depth, labels and normals fused with those of the frames before, by the camera's poses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal.scale import ScaleFilter
from m2h_deploy.temporal.settings import FilterSettings
from m2h_deploy.temporal.vote import NONE, Labels, vote
from m2h_deploy.temporal.warp import Warp, close_cracks, motion_between

Array = NDArray[np.float32]


@dataclass(eq=False)
class _Past:
    """Fused result of the frame before; arrays are (H, W) or more."""

    pose: Pose
    timestamp: float
    depth: Array
    weight: Array
    """Number of measurements that the depth is worth; 0 where unknown."""
    labels: Labels | None
    """(N, H, W): the labels of the last frames as this camera sees them, not fused, oldest first."""
    normals: Array | None = None


class TemporalFilter:
    """Fuses the predictions of a moving camera with the past, so that depth and labels do not flicker.

    ```python
    temporal = TemporalFilter(intrinsics)
    for frame in sequence:
        prediction = temporal(runtime(frame.image), frame.pose, frame.timestamp)
    ```

    The fused depth of the frame before is projected into the present camera with a z-buffer, and the scale of the
    present depth is brought closer to it. Where both agree (see `FilterSettings`), a Kalman filter per pixel fuses
    them, the labels of the last frames vote, and normals are averaged. Elsewhere the present frame is kept, so that a
    new obstacle appears at once. Edges are not changed.

    The past is dropped after a pause, after a jump of the camera, and if past and present do not show the same place.
    A frame without a pose is returned as it is. Not thread-safe.
    """

    def __init__(self, intrinsics: Intrinsics | None = None, settings: FilterSettings | None = None) -> None:
        """Make a filter without a past.

        Args:
            intrinsics: of the predictions' pixels; may be set later, before the first frame with a pose.
            settings: defaults if None.
        """
        self.settings = settings or FilterSettings()
        self.intrinsics = intrinsics
        self._scale = ScaleFilter(self.settings.scale_alpha)
        self._warp: Warp | None = None
        self._past: _Past | None = None
        # Process noise, in units of a measurement's variance: a pixel's gain goes down to 1 / history_size.
        size = self.settings.history_size
        self._noise = 1 / (size * (size - 1))
        self.resets: dict[str, int] = {}
        """How often the past was dropped, by reason."""
        self.unposed = 0
        """Frames without a pose, which were returned as they are."""
        self.support = 0.0
        """Share of the pixels of the last frame that the past supports, 0 to 1."""

    @property
    def log_scale(self) -> float:
        """Filtered natural logarithm of the last frame's depth by the past's, before it was corrected."""
        return self._scale.value

    def reset(self) -> None:
        """Drop the past."""
        self._past = None
        self._scale.reset()

    def __call__(self, prediction: Prediction, pose: Pose | None, timestamp: float) -> Prediction:
        """Fuse one frame with the past.

        Args:
            prediction: of the engine, with depth; its arrays are not changed, and may be returned.
            pose: of the camera at the time of the image, camera to world, (4, 4), meters; None if unknown.
            timestamp: of the image, seconds.

        Returns:
            A prediction of the same tasks; `timings` has `filter`, in milliseconds, too.

        Raises:
            M2HError: the prediction has no depth, the intrinsics are not set, or the pose is not a rigid transform.
        """
        start = perf_counter()
        if prediction.depth is None:
            raise M2HError("temporal filter: the engine has no depth")
        self.support = 0.0
        if pose is None:
            self.unposed += 1
            return prediction
        warp = self._warp_of(prediction.depth)
        fused = self._fuse(prediction, _checked(pose), timestamp, warp)
        timings = prediction.timings | {"filter": 1000 * (perf_counter() - start)}
        return dataclasses.replace(fused, timings=timings)

    def _warp_of(self, depth: Array) -> Warp:
        if self.intrinsics is None:
            raise M2HError("temporal filter: the camera's intrinsics are not set")
        height, width = depth.shape
        if self._warp is None or self._warp.size != (height, width) or self._warp.intrinsics != self.intrinsics:
            self.reset()
            self._warp = Warp(self.intrinsics, height, width)
        return self._warp

    def _fuse(self, prediction: Prediction, pose: Pose, timestamp: float, warp: Warp) -> Prediction:
        present = self._measure(prediction, pose, timestamp)
        fused = self._fuse_past(prediction, present, warp)
        # A copy, because the caller may write to the arrays of a prediction.
        present.normals = None if fused.normals is None else fused.normals.copy()
        self._past = present
        return fused

    def _fuse_past(self, prediction: Prediction, present: _Past, warp: Warp) -> Prediction:
        """Fuse `present` with the past, and return its prediction; unchanged if there is no past of the same place."""
        past, motion = self._past, None if self._past is None else self._motion(self._past, present)
        if past is None or motion is None:
            return prediction
        warped, source = close_cracks(warp.forward(past.depth, motion))
        if not self._scale.update(present.depth, warped):
            self._drop("past and present differ")
            return prediction
        same, gain = self._fuse_depth(present, past, warped, source)
        valid = present.weight > 0
        assert prediction.depth is not None
        depth = np.where(valid, present.depth, prediction.depth)
        labels, normals = prediction.semantics, prediction.normals
        if labels is not None and present.labels is not None and past.labels is not None:
            votes = past.labels[-(self.settings.history_size - 1) :].reshape(-1, labels.size)
            seen = np.take(votes, source, axis=1)
            seen |= np.where(same, np.uint8(0), np.uint8(NONE))
            present.labels = np.concatenate([seen, present.labels])
            labels = np.where(valid, vote(present.labels, self.settings.label_min_votes), labels)
        if normals is not None and past.normals is not None:
            normals = _average(normals, np.take(past.normals.reshape(-1, 3), source, axis=0), motion, gain)
        return Prediction(depth, labels, normals, prediction.edges)

    def _measure(self, prediction: Prediction, pose: Pose, timestamp: float) -> _Past:
        """Return the measurements of one frame as the past of the next one; normals are added later."""
        settings = self.settings
        depth, labels = prediction.depth, prediction.semantics
        assert depth is not None
        valid = (depth >= settings.min_depth) & (depth <= settings.max_depth)
        if settings.dynamic_labels and labels is not None:
            valid &= ~np.isin(labels, settings.dynamic_labels)
        return _Past(
            pose,
            timestamp,
            np.where(valid, depth, np.float32(0)),
            valid.astype(np.float32),
            None if labels is None else np.where(valid, labels, np.uint8(NONE))[None],
        )

    def _fuse_depth(
        self, present: _Past, past: _Past, warped: Array, source: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], Array]:
        """Fuse the depth of `present`; return the pixels that the past supports, and the weight of the past there."""
        settings, depth, weight = self.settings, present.depth, present.weight
        depth *= np.float32(np.exp(-settings.scale_gain * self._scale.value))
        gate = np.maximum(np.float32(settings.depth_gate_rel) * depth, np.float32(max(settings.depth_gate_abs, 1e-6)))
        trust = np.clip(2 - np.abs(warped - depth) / gate, 0, 1)
        trust *= (warped > 0) & (weight > 0)
        same = trust > 0.5
        self.support = float(np.count_nonzero(same)) / same.size
        before = np.take(past.weight, source)
        before *= trust
        before /= 1 + np.float32(self._noise) * before
        present.weight = weight + before
        gain = np.divide(before, present.weight, out=before, where=present.weight > 0)
        depth += gain * (warped - depth)
        return same, gain

    def _motion(self, past: _Past, present: _Past) -> Pose | None:
        """Return the motion of the camera since the past; None if the past is too old or the camera jumped."""
        age = present.timestamp - past.timestamp
        if not 0 <= age <= self.settings.max_history_age_s:
            self._drop("pause" if age > 0 else "time runs backwards")
            return None
        motion = motion_between(past.pose, present.pose)
        turned = np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
        if np.linalg.norm(motion[:3, 3]) > self.settings.max_translation or turned > self.settings.max_rotation:
            self._drop("the camera jumped")
            return None
        return motion

    def _drop(self, reason: str) -> None:
        self.reset()
        self.resets[reason] = self.resets.get(reason, 0) + 1


def _checked(pose: Pose) -> Pose:
    """Return a pose as float64. Raises M2HError if it is not a rigid transform."""
    transform = np.asarray(pose, np.float64)
    if transform.shape != (4, 4):
        raise M2HError(f"temporal filter: the pose has the shape {transform.shape}, expected (4, 4): camera to world")
    if not np.isfinite(transform).all():
        raise M2HError("temporal filter: the pose has NaN or infinity; give None where it is unknown")
    rotation = transform[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or not np.allclose(transform[3], (0, 0, 0, 1)):
        raise M2HError("temporal filter: the pose is not a rigid transform (rotation, translation, last row 0 0 0 1)")
    return transform


def _average(normals: Array, past: Array, motion: Pose, gain: Array) -> Array:
    """Average present normals with the past's, turned by `motion`: `gain` (H, W) is the past's weight, 0 to 1."""
    turned = cv2.transform(past, motion[:3, :3].astype(np.float32))
    # Channel by channel, because broadcasting over a last axis of three is several times slower.
    mixed = [new + gain * (old - new) for new, old in zip(cv2.split(normals), cv2.split(turned), strict=True)]
    length = cv2.magnitude(cv2.magnitude(mixed[0], mixed[1]), mixed[2])
    # Opposite vectors may cancel out: the present one is kept there.
    good = length > 1e-6
    unit = cv2.merge([channel / np.where(good, length, np.float32(1)) for channel in mixed])
    return unit if good.all() else np.where(good[..., None], unit, normals)
