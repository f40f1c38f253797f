"""Pose of the camera at the time of an image, from odometry or from tf.

Without ROS: any objects with the fields of its messages, and with the methods of tf2_ros, work.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol

import numpy as np

from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequences.trajectory import ROUNDING, Trajectory, pose_matrices
from m2h_perception import messages

#: Seconds without odometry after which an image no longer waits for it.
_SILENCE = 1.0

#: Seconds between two attempts to look up a transform.
_POLL = 0.005


class Poses(Protocol):
    """Poses of the camera over time."""

    def at(self, stamp: int, frame: str) -> Pose | str:
        """Return the pose at `stamp`, or why it is unknown. May wait a moment for a pose as new as that.

        Args:
            stamp: of an image, nanoseconds.
            frame: the image's frame_id.

        Returns:
            Camera to world, float64 (4, 4), meters; or a reason that does not vary with the image.
        """
        ...


class _Row(NamedTuple):
    stamp: int
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]
    valid: bool


class OdometryPoses:
    """Poses from nav_msgs/Odometry: the pose of its child_frame_id, the body, in its frame_id, the world.

    The pose of an image is interpolated between two messages at most 0.1 s apart, or else the nearest within `timeout`.
    One thread calls `put`, another one `at`.
    """

    def __init__(
        self, topic: str, *, timeout: float, cache: float, camera_frame: str = "", camera_in_body: Pose | None = None
    ) -> None:
        """Make an empty buffer.

        Args:
            topic: of the odometry, for messages.
            timeout: longest wait for a pose as new as an image, and largest distance in time to one, seconds.
            cache: seconds of odometry to keep.
            camera_frame: name of the camera's optical frame; empty: the image's frame_id.
            camera_in_body: constant transform from the camera to the body; None if the body is the camera's frame.
        """
        self._topic, self._timeout, self._cache = topic, timeout, cache
        self._camera_frame, self._camera_in_body = camera_frame, camera_in_body
        self._changed = threading.Condition()
        self._rows: list[_Row] = []
        self._body = ""
        self._arrived = monotonic()

    def put(self, message: Any) -> None:
        """Add an Odometry message. Time that runs backwards, as in a recording that starts again, drops all before."""
        stamp = messages.stamp_ns(message.header)
        position, quaternion = _values(message.pose.pose.position, message.pose.pose.orientation)
        with self._changed:
            self._body, self._arrived = message.child_frame_id, monotonic()
            if self._rows and stamp < self._rows[-1].stamp:
                self._rows.clear()
            if not self._rows or stamp > self._rows[-1].stamp:
                self._rows.append(_Row(stamp, position, quaternion, _is_valid(position, quaternion)))
            del self._rows[: bisect_left(self._rows, stamp - self._cache * 1e9, key=lambda row: row.stamp)]
            self._changed.notify_all()

    def at(self, stamp: int, frame: str) -> Pose | str:
        """Return the pose at `stamp`, or why it is unknown; see `Poses`."""
        with self._changed:
            if not self._rows:
                return f"no odometry on {self._topic}"
            if monotonic() - self._arrived < _SILENCE:
                self._changed.wait_for(lambda: self._rows[-1].stamp >= stamp, self._timeout)
            place = bisect_left(self._rows, stamp, key=lambda row: row.stamp)
            near = self._rows[max(place - 1, 0) : place + 1]
            body = self._body
        camera = self._camera_frame or frame
        if self._camera_in_body is None and body != camera:
            return f"{self._topic} has poses of '{body}', not of the camera '{camera}': set camera_in_body"
        pose = _interpolated(near, stamp, self._timeout)
        if pose is None:
            return f"{self._topic} has no pose at the image's time"
        return pose if self._camera_in_body is None else pose @ self._camera_in_body


class TfPoses:
    """Poses from tf: the transform from the camera's frame to a fixed one."""

    def __init__(
        self,
        buffer: Any,
        tf2: Any,
        to_time: Callable[[int], Any],
        *,
        fixed_frame: str,
        camera_frame: str = "",
        timeout: float,
    ) -> None:
        """Take the buffer of a listener.

        Args:
            buffer: a tf2_ros.Buffer.
            tf2: the module tf2_ros, for its exceptions.
            to_time: makes an rclpy.time.Time of nanoseconds.
            fixed_frame: the world.
            camera_frame: name of the camera's optical frame; empty: the image's frame_id.
            timeout: longest wait for a transform as new as an image, seconds.
        """
        self._buffer, self._tf2, self._to_time = buffer, tf2, to_time
        self._fixed_frame, self._camera_frame, self._timeout = fixed_frame, camera_frame, timeout
        self._last = 0

    def at(self, stamp: int, frame: str) -> Pose | str:
        """Return the pose at `stamp`, or why it is unknown; see `Poses`."""
        camera, fixed = self._camera_frame or frame, self._fixed_frame
        if not camera:
            return "the image has no frame_id: set camera_frame"
        if stamp < self._last:
            # A recording starts again. tf2 ignores transforms that are older than those it has.
            self._buffer.clear()
        self._last = stamp
        deadline = monotonic() + self._timeout
        while True:
            try:
                found = self._buffer.lookup_transform(fixed, camera, self._to_time(stamp)).transform
                break
            except self._tf2.ExtrapolationException:
                if monotonic() >= deadline:
                    return f"tf from {camera} to {fixed} has nothing at the image's time"
            except self._tf2.TransformException:
                return f"tf has no transform from {camera} to {fixed}"
            sleep(_POLL)
        position, quaternion = _values(found.translation, found.rotation)
        if not _is_valid(position, quaternion):
            return f"tf from {camera} to {fixed} is not a rigid transform"
        return rigid_transform(position, quaternion)


def rigid_transform(position: tuple[float, ...], quaternion: tuple[float, ...]) -> Pose:
    """Return the transform with this translation (3) and rotation (4, x y z w, not 0) as float64 (4, 4)."""
    unit = np.array([quaternion], np.float64) / np.linalg.norm(quaternion)
    pose: Pose = pose_matrices(np.array([position], np.float64), unit)[0]
    return pose


def _values(vector: Any, rotation: Any) -> tuple[tuple[float, float, float], tuple[float, float, float, float]]:
    return (vector.x, vector.y, vector.z), (rotation.x, rotation.y, rotation.z, rotation.w)


def _is_valid(position: tuple[float, ...], quaternion: tuple[float, ...]) -> bool:
    """Return whether all are finite and the quaternion has unit length; a message that was not filled has (0 0 0 0)."""
    return bool(np.isfinite(position).all()) and abs(float(np.linalg.norm(quaternion)) - 1) <= ROUNDING


def _interpolated(rows: list[_Row], stamp: int, tolerance: float) -> Pose | None:
    times = np.array([row.stamp - stamp for row in rows]) * 1e-9
    valid = np.array([row.valid for row in rows])
    positions = np.array([row.position if row.valid else (0, 0, 0) for row in rows], np.float64)
    quaternions = np.array([row.quaternion if row.valid else (0, 0, 0, 1) for row in rows], np.float64)
    quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
    return Trajectory(Path("odometry"), times, positions, quaternions, valid).at(np.zeros(1), tolerance)[0]
