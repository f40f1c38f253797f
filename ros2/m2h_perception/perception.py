"""What a perception node does, for a plain node and for a managed one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import rclpy
from numpy.typing import NDArray
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from m2h_deploy import M2HError, Runtime
from m2h_deploy.label_spaces.read import read_label_remap
from m2h_deploy.stream.stream import Stream, StreamFrame
from m2h_deploy.temporal.filter import TemporalFilter
from m2h_perception import messages
from m2h_perception.calibration import Calibration
from m2h_perception.camera import Camera
from m2h_perception.diagnostics import Monitor, identity
from m2h_perception.inputs import THROTTLE, Inputs, queue_size
from m2h_perception.policy import lag_seconds
from m2h_perception.pose_topics import open_poses
from m2h_perception.publishers import Publishers
from m2h_perception.settings import Settings
from m2h_perception.status_topic import StatusTopic
from m2h_perception.temporal import OFF, Temporal


class Perception:
    """Run a bundle on a camera's topic.

    `open` opens the bundle and the topics of the results, `start` takes images, `stop` no longer does, `close` releases
    everything. The executor's thread calls these and receives images, and passes the newest to a `Stream`; a separate
    thread publishes the results. `close` must always be called.
    """

    def __init__(self, node: Node, settings: Settings, *, fail: Callable[[], None]) -> None:
        """Prepare.

        Args:
            node: that subscribes and publishes.
            settings: its parameters.
            fail: called on the publishing thread when the stream has ended with an error, which is then in `failure`.
        """
        self._node, self._settings, self._fail = node, settings, fail
        self.failure: M2HError | None = None
        self._opened = contextlib.ExitStack()
        self._started = contextlib.ExitStack()
        self._stopping = False

    def open(self) -> None:
        """Open the bundle and the topics of the results.

        Raises:
            M2HError: The bundle cannot be used.
            CheckFailed: The bundle's self-test fails.
            ExternalShutdownException: ROS was shut down in the meantime.
        """
        settings, node = self._settings, self._node
        remap = read_label_remap(settings.label_remap) if settings.label_remap else None
        self._runtime = Runtime.load(
            settings.bundle,
            self_test=settings.self_test,
            threads=settings.threads or None,
            device=settings.device or None,
        )
        self._opened.callback(self._runtime.close)
        if not node.context.ok():
            raise ExternalShutdownException
        for warning in settings.check_bundle(self._runtime.manifest):
            node.get_logger().warning(warning)
        self._calibration = Calibration(settings.camera_info_topic, rectify=settings.rectify)
        self._temporal = self._make_temporal(remap) if settings.temporal_filter else None
        facts = identity(self._runtime.manifest, settings.self_test, settings.depth_scale)
        more = self._temporal.values if self._temporal else OFF.copy
        self._monitor = Monitor(settings.input_topic, settings.camera_timeout_s, facts, more=more)
        self._outputs = Publishers(
            node, settings, self._runtime, remap, calibration=self._calibration, note=self._warn_of_frame
        )
        self._opened.callback(self._outputs.close)
        self._ready = f"{facts['model']} on {facts['engine']}, self-test {facts['self-test']}"

    def _make_temporal(self, remap: NDArray[np.uint8] | None) -> Temporal:
        settings = self._settings
        if "depth" not in self._runtime.tasks:
            raise M2HError("parameter temporal_filter is true: the bundle has no depth, which the filter needs")
        before = set(self._node.subscriptions)
        try:
            poses, source = open_poses(self._node, settings)
        finally:  # also of one that failed half-way
            for subscription in set(self._node.subscriptions) - before:
                self._opened.callback(self._node.destroy_subscription, subscription)
        return Temporal(
            TemporalFilter(settings=settings.filter_settings(remap)),
            poses,
            source=source,
            camera_info_topic=settings.camera_info_topic,
            warn=self._node.get_logger().warning,
            rectified=settings.rectify,
        )

    def start(self) -> None:
        """Subscribe to the camera and process its images, after `open` or `stop`.

        Raises:
            M2HError: An option of the stream is out of range.
        """
        settings, temporal = self._settings, self._temporal
        self._stopping = False
        self._monitor.begin()
        inputs = Inputs(self._node, settings, self._calibration, self._monitor)
        see = self._calibration.see if settings.rectify or self._outputs.need_camera_info else None
        locate = temporal.locate if temporal else None
        camera: Camera[Any] = Camera(inputs.to_image, capacity=queue_size(settings), see=see, locate=locate)
        stream = self._stream = Stream(
            self._runtime,
            camera.source(),
            policy="latest" if settings.latest_only else "queue",
            reuse=True,
            temporal=temporal.filter if temporal else None,
            timeout=settings.engine_timeout_s,
            on_problem=self._problem,
        )
        thread = threading.Thread(target=self._publish_all, args=(stream,), name="m2h-publish")
        # The last one first; the thread is joined when the stream has ended.
        for end in (lambda: thread.join(2.0) if thread.ident else None, stream.close, camera.close):
            self._started.callback(end)
        wanted = see is not None or temporal is not None
        self._started.callback(inputs.close)
        inputs.open(camera, self._on_camera_info if wanted else None)
        self._status = StatusTopic(self._node, settings, self._monitor, lambda: stream.health)
        self._started.callback(self._status.close)
        thread.start()
        self._node.get_logger().info(self._ready)

    def stop(self) -> None:
        """Unsubscribe and end the stream; the engine stays open. Idempotent."""
        self._stopping = True
        self._started.close()

    def close(self) -> None:
        """Stop, and release the engine and the topics. Idempotent."""
        self.stop()
        self._opened.close()

    def _on_camera_info(self, message: Any) -> None:
        self._calibration.put(message)
        if self._temporal is not None:
            self._temporal.on_camera_info(message)

    # The stream's threads

    def _problem(self, words: str) -> None:
        if not self._stopping:
            self._node.get_logger().warning(words, throttle_duration_sec=THROTTLE)

    def _warn_of_frame(self, words: str) -> None:
        self._monitor.note(words)
        self._node.get_logger().warning(words, throttle_duration_sec=THROTTLE)

    def _publish_all(self, stream: Stream) -> None:
        try:
            for frame in stream:
                self._publish(frame)
        except Exception as error:
            if self._stopping or not self._node.context.ok():
                return  # Ctrl-C removes the topics while a frame is being published
            self.failure = error if isinstance(error, M2HError) else M2HError(f"publishing failed: {error}")
            self._monitor.failed(str(self.failure))
            try:
                self._status.report()
            finally:
                self._fail()

    def _publish(self, frame: StreamFrame) -> None:
        self._outputs.publish(frame)
        stamp = messages.stamp_ns(Camera.message_of(frame.image).header)
        age = lag_seconds(stamp, self._node.get_clock().now().nanoseconds)
        self._monitor.published(age, frame.prediction.timings["inference"])
        if self._temporal is not None:
            located = Camera.located_of(frame.image)
            self._temporal.published(located, frame.prediction)
            if located.pose is None:
                self._warn_of_frame(f"unfiltered: {located.reason}")


def shut_down(node: Node) -> None:
    """End the node's process, from any thread: its executor returns."""
    rclpy.try_shutdown(context=node.context)
