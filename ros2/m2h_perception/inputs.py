"""Subscriptions to a camera: its images, raw or compressed, and its CameraInfo."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from m2h_perception import messages
from m2h_perception.calibration import Calibration
from m2h_perception.camera import Camera
from m2h_perception.diagnostics import Monitor
from m2h_perception.policy import FramePolicy
from m2h_perception.settings import Settings

#: Seconds between two warnings of the same kind.
THROTTLE = 5.0


def queue_size(settings: Settings) -> int:
    """Return how many images may wait."""
    return 1 if settings.latest_only else settings.input_queue_size


class Inputs:
    """Receives images on the executor's thread and passes those that the policy takes to a `Camera`."""

    def __init__(self, node: Node, settings: Settings, calibration: Calibration, monitor: Monitor) -> None:
        """Prepare to receive; `open` subscribes."""
        self._node, self._settings, self._calibration, self._monitor = node, settings, calibration, monitor
        self._compressed = settings.image_transport == "compressed"
        self._policy = FramePolicy(settings.skip_frequency, settings.warn_output_lag_s, settings.max_output_lag_s)
        self._subscriptions: list[Subscription] = []
        self._camera: Camera[Any] | None = None

    def to_image(self, message: Any) -> NDArray[np.uint8]:
        """Convert a message to uint8 (H, W, 3) BGR, on the stream's thread. Raises M2HError if it is damaged."""
        if not self._compressed:
            return messages.image_to_bgr(message, self._settings.input_color_order)
        image = messages.compressed_to_bgr(message, self._settings.input_topic)
        self._sized(image.shape[1], image.shape[0])
        return image

    def open(self, camera: Camera[Any], on_camera_info: Callable[[Any], None] | None) -> None:
        """Subscribe to the images, and to CameraInfo if it is wanted."""
        self._camera = camera
        # A best-effort subscription matches publishers of either kind. A reliable one does not match a sensor-data
        # publisher, but only a reliable one receives every image of a recording.
        best_effort, reliable = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
        profile = functools.partial(QoSProfile, history=HistoryPolicy.KEEP_LAST)
        settings, subscribe = self._settings, self._node.create_subscription
        if on_camera_info is not None:
            latest = profile(depth=1, reliability=best_effort)
            self._subscriptions.append(subscribe(CameraInfo, settings.camera_info_topic, on_camera_info, latest))
        images = profile(depth=queue_size(settings), reliability=best_effort if settings.latest_only else reliable)
        kind = CompressedImage if self._compressed else Image
        self._subscriptions.append(subscribe(kind, settings.input_topic, self._on_image, images))

    def close(self) -> None:
        """Unsubscribe. Idempotent."""
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _sized(self, width: int, height: int) -> None:
        change = self._monitor.sized(width, height)
        if change is not None:
            self._node.get_logger().warning(change)

    def _on_image(self, message: Any) -> None:
        self._monitor.received(message.format if self._compressed else message.encoding)
        if not self._compressed:
            self._sized(message.width, message.height)
        now = self._node.get_clock().now().nanoseconds
        verdict = self._policy.decide(messages.stamp_ns(message.header), now)
        if verdict.late and verdict.lag is not None:
            self._monitor.late(verdict.lag)
            words = f"an image was {verdict.lag:.1f} s old when it arrived"
            self._node.get_logger().warning(words, throttle_duration_sec=THROTTLE)
        if verdict.fate != "take":
            self._monitor.count("skipped" if verdict.fate == "skip" else "stale")
        elif self._settings.rectify and self._calibration.info is None:
            self._monitor.count("without CameraInfo")
            self._monitor.note(f"images are dropped until CameraInfo arrives on {self._settings.camera_info_topic}")
        elif self._camera is not None and self._camera.put(message):
            self._monitor.count("dropped before")
