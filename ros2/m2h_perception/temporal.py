"""The temporal filter in the node: where its poses and intrinsics come from, and what diagnostics tell about it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from m2h_deploy.data.frame import Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal.filter import TemporalFilter
from m2h_perception import calibration, messages
from m2h_perception.camera import Located
from m2h_perception.poses import Poses

#: Values of a node without the filter.
OFF = {"temporal filter": "off"}


class Temporal:
    """Locates images for the filter of a stream, and counts what became of them.

    The executor's thread calls `on_camera_info` and `values`, the stream's reader `locate`, the publisher `published`.
    """

    def __init__(
        self,
        temporal: TemporalFilter,
        poses: Poses,
        *,
        source: str,
        camera_info_topic: str,
        warn: Callable[[str], None],
        rectified: bool = False,
    ) -> None:
        """Make the part of a node that serves `temporal`.

        Args:
            temporal: the stream's filter; its intrinsics are set here.
            poses: of the camera.
            source: where they come from, in words.
            camera_info_topic: for messages.
            warn: called with a warning that is given once.
            rectified: whether the images are rectified before.
        """
        self.filter = temporal
        self._poses, self._source, self._info_topic, self._warn = poses, source, camera_info_topic, warn
        self._intrinsics = calibration.rectified_intrinsics if rectified else messages.intrinsics
        self._rectified = rectified
        self._info: Any = None
        self._lock = threading.Lock()
        self._filtered = 0
        self._unfiltered: Counter[str] = Counter()
        self._milliseconds: float | None = None

    def on_camera_info(self, message: Any) -> None:
        """Take a CameraInfo message."""
        if self._info is None and any(message.d) and not self._rectified:
            self._warn(f"{self._info_topic} states lens distortion, which the temporal filter ignores")
        self._info = message

    def locate(self, image: Any) -> Located:
        """Return the time and the pose of a `Picture` or Image, and give the filter its intrinsics."""
        stamp = messages.stamp_ns(image.header)
        if stamp <= 0:
            return Located(reason="the image has no stamp")
        pose = self._pose(image, stamp)
        return Located(stamp * 1e-9, reason=pose) if isinstance(pose, str) else Located(stamp * 1e-9, pose)

    def _pose(self, image: Any, stamp: int) -> Pose | str:
        if self._info is None:
            return f"no CameraInfo on {self._info_topic}"
        try:
            intrinsics = self._intrinsics(self._info, image)
        except M2HError as error:
            return str(error)
        # A frame of another size that is still in work meets these intrinsics: the filter starts anew there anyway.
        self.filter.intrinsics = intrinsics
        return self._poses.at(stamp, image.header.frame_id)

    def published(self, located: Located, prediction: Prediction) -> None:
        """Count a frame that was published."""
        with self._lock:
            if located.pose is None:
                self._unfiltered[located.reason] += 1
            else:
                self._filtered += 1
                self._milliseconds = prediction.timings.get("filter")

    def values(self) -> dict[str, str]:
        """Return the values of diagnostics."""
        with self._lock:
            spent = self._milliseconds
            return {
                "temporal filter": f"on, poses from {self._source}",
                "filtered": str(self._filtered),
                "filter (ms)": "none" if spent is None else f"{spent:.1f}",
                "filter support": f"{self.filter.support:.2f}",
                "filter resets": _listed(self.filter.resets),
                "unfiltered": str(self._unfiltered.total()),
                "unfiltered, by reason": _listed(self._unfiltered),
            }


def _listed(counts: dict[str, int]) -> str:
    # A copy, because another thread may add a reason.
    return "; ".join(f"{reason}: {count}" for reason, count in sorted(counts.copy().items())) or "none"
