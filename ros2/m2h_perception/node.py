"""The node: images in, depth and labels out, each with the header of its input image."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

from m2h_deploy import M2HError, Runtime
from m2h_deploy.stream.stream import Stream, StreamFrame
from m2h_deploy.temporal.filter import TemporalFilter
from m2h_perception import messages
from m2h_perception.camera import Camera
from m2h_perception.diagnostics import Monitor, Report, identity
from m2h_perception.labels import read_label_remap
from m2h_perception.policy import FramePolicy, lag_seconds
from m2h_perception.pose_topics import open_poses
from m2h_perception.settings import LISTS, Settings, defaults, unknown_parameters
from m2h_perception.temporal import OFF, Temporal

try:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
except ImportError:  # then the status goes to the log
    DiagnosticArray = None

#: Seconds between two warnings of the same kind.
_THROTTLE = 5.0

#: A topic's publisher, and the function from a frame to its pixels.
_Output = tuple[Publisher, Callable[[StreamFrame], messages.Pixels]]


class PerceptionNode(Node):
    """Run a bundle on a camera's topic.

    The executor's thread receives images and passes the newest to a `Stream`; a separate thread publishes the results.
    The constructor only reads the parameters; `start` opens the bundle and the topics, and `close` must always be
    called. Invalid parameters raise M2HError or one of rclpy's exceptions, which `main` reports.
    """

    def __init__(self) -> None:
        super().__init__("m2h_perception")
        values = {name: self._parameter(name, value) for name, value in defaults().items()}
        # Before the settings are checked: a misspelled name is often why one is missing. rclpy has no public list of
        # the given parameters; those that it declares itself, such as use_sim_time, are known.
        given = getattr(self, "_parameter_overrides", {})
        for line in unknown_parameters(name for name in given if not self.has_parameter(name)):
            self.get_logger().warning(line)
        self.settings = Settings(**values)
        self.failure: M2HError | None = None
        self._closing = False
        self._camera_info: CameraInfo | None = None
        self._thread: threading.Thread | None = None
        self._ends = contextlib.ExitStack()

    def _parameter(self, name: str, default: Any) -> Any:
        # ROS reads 5 as an integer and rejects it if the default is 5.0. Read once, so setting one later is rejected.
        dynamic = isinstance(default, float) or name in LISTS
        descriptor = ParameterDescriptor(dynamic_typing=dynamic, read_only=True)
        return self.declare_parameter(name, default, descriptor).value

    def start(self) -> None:
        """Open the bundle and the topics.

        Raises:
            M2HError: The bundle cannot be used.
            CheckFailed: The bundle's self-test fails.
            ExternalShutdownException: ROS was shut down in the meantime.
        """
        settings = self.settings
        self._remap = read_label_remap(settings.label_remap) if settings.label_remap else None
        self.runtime = Runtime.load(
            settings.bundle,
            self_test=settings.self_test,
            threads=settings.threads or None,
            device=settings.device or None,
        )
        self._ends.callback(self.runtime.close)
        if not self.context.ok():
            raise ExternalShutdownException
        self._policy = FramePolicy(settings.skip_frequency, settings.warn_output_lag_s, settings.max_output_lag_s)
        facts = identity(self.runtime.manifest, settings.self_test)
        temporal = self._temporal = self._make_temporal() if settings.temporal_filter else None
        more = temporal.values if temporal else OFF.copy
        self._monitor = Monitor(settings.image_topic, settings.camera_timeout_s, facts, more=more)
        convert = functools.partial(messages.image_to_bgr, color_order=settings.input_color_order)
        locate = temporal.locate if temporal else None
        self._camera: Camera[Image] = Camera(convert, capacity=self._queue, locate=locate)
        self._stream = Stream(
            self.runtime,
            self._camera.source(),
            policy="latest" if settings.latest_only else "queue",
            reuse=True,
            temporal=temporal.filter if temporal else None,
            timeout=settings.engine_timeout_s,
            on_problem=self._problem,
        )
        for end in (self._join, self._stream.close, self._camera.close):  # the last one first
            self._ends.callback(end)
        self._outputs = self._make_outputs()
        self._make_inputs()
        self._make_diagnostics()
        self._thread = threading.Thread(target=self._publish_all, name="m2h-publish")
        self._thread.start()
        self.get_logger().info(f"{facts['model']} on {facts['engine']}, self-test {facts['self-test']}")

    @property
    def _queue(self) -> int:
        return 1 if self.settings.latest_only else self.settings.input_queue_size

    def _make_temporal(self) -> Temporal:
        settings = self.settings
        if "depth" not in self.runtime.tasks:
            raise M2HError("parameter temporal_filter is true: the bundle has no depth, which the filter needs")
        poses, source = open_poses(self, settings)
        return Temporal(
            TemporalFilter(settings=settings.filter_settings(self._remap)),
            poses,
            source=source,
            camera_info_topic=settings.camera_info_topic,
            warn=self.get_logger().warning,
        )

    def _make_outputs(self) -> list[_Output]:
        settings, tasks = self.settings, self.runtime.tasks
        palette = messages.palette_table(self.runtime.manifest.classes.palette)
        color_topic = settings.image_semantic_topic if settings.publish_color_semantic else ""
        outputs: list[_Output] = []

        def add(topic: str, task: str, pixels: Callable[[Any], messages.Pixels]) -> None:
            if topic and task not in tasks:
                self.get_logger().warning(f"{topic} is not published: the bundle has no {task}")
            elif topic:
                publisher = self.create_publisher(Image, topic, settings.output_queue_size)
                outputs.append((publisher, lambda frame: pixels(getattr(frame.prediction, task))))

        add(settings.image_depth_topic, "depth", lambda depth: messages.depth_pixels(depth, settings.depth_scale))
        add(settings.label_ids_topic, "semantics", lambda labels: messages.label_pixels(labels, self._remap))
        add(color_topic, "semantics", lambda labels: messages.color_pixels(labels, palette))
        add(settings.normals_topic, "normals", messages.float_pixels)
        add(settings.edges_topic, "edges", messages.float_pixels)
        return outputs

    def _make_inputs(self) -> None:
        settings = self.settings
        # A best-effort subscription matches publishers of either kind. A reliable one does not match a sensor-data
        # publisher, but only a reliable one receives every image of a recording.
        best_effort, reliable = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
        profile = functools.partial(QoSProfile, history=HistoryPolicy.KEEP_LAST)
        depth = settings.output_queue_size
        self._synced: Publisher | None = None
        self._synced_info: Publisher | None = None
        if settings.publish_synced_inputs and settings.synced_rgb_topic:
            self._synced = self.create_publisher(Image, settings.synced_rgb_topic, depth)
        if settings.publish_synced_inputs and settings.synced_camera_info_topic and settings.camera_info_topic:
            self._synced_info = self.create_publisher(CameraInfo, settings.synced_camera_info_topic, depth)
        if self._synced_info is not None or self._temporal is not None:
            latest = profile(depth=1, reliability=best_effort)
            self.create_subscription(CameraInfo, settings.camera_info_topic, self._on_camera_info, latest)
        images = profile(depth=self._queue, reliability=best_effort if settings.latest_only else reliable)
        self.create_subscription(Image, settings.image_topic, self._on_image, images)

    def _make_diagnostics(self) -> None:
        self._diagnostics: Publisher | None = None
        self._silent = False
        if DiagnosticArray is None:
            self.get_logger().warning("diagnostic_msgs is not installed: the log has the status instead")
        elif self.settings.diagnostics_topic:
            self._diagnostics = self.create_publisher(DiagnosticArray, self.settings.diagnostics_topic, 10)
        # With the clock of a paused recording the timer would never fire.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self.settings.diagnostics_period_s, self._diagnose, clock=steady)

    # The executor's thread

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._camera_info = message
        if self._temporal is not None:
            self._temporal.on_camera_info(message)

    def _on_image(self, message: Image) -> None:
        change = self._monitor.received(message.width, message.height, message.encoding)
        if change is not None:
            self.get_logger().warning(change)
        verdict = self._policy.decide(messages.stamp_ns(message.header), self.get_clock().now().nanoseconds)
        if verdict.late and verdict.lag is not None:
            self._monitor.late(verdict.lag)
            words = f"an image was {verdict.lag:.1f} s old when it arrived"
            self.get_logger().warning(words, throttle_duration_sec=_THROTTLE)
        if verdict.fate != "take":
            self._monitor.count("skipped" if verdict.fate == "skip" else "stale")
        elif self._camera.put(message):
            self._monitor.count("dropped before")

    def _diagnose(self) -> None:
        report = self._monitor.report(self._stream.health)
        silent = self._monitor.silent() is not None
        if silent != self._silent:
            self._silent = silent
            if silent:
                self.get_logger().error(report.message)
            else:
                self.get_logger().info(f"images on {self.settings.image_topic} again")
        if self._diagnostics is not None:
            self._diagnostics.publish(self._status(report))
        elif DiagnosticArray is None:
            self.get_logger().info(f"{report.message}; {report.values}")

    def _status(self, report: Report) -> Any:
        pairs = [KeyValue(key=key, value=value) for key, value in report.values.items()]
        status = DiagnosticStatus(
            level=bytes([report.level]),
            name=f"{self.get_name()}: perception",
            message=report.message,
            hardware_id=self.settings.image_topic,
            values=pairs,
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        return array

    # The stream's threads

    def _problem(self, words: str) -> None:
        if not self._closing:
            self.get_logger().warning(words, throttle_duration_sec=_THROTTLE)

    def _publish_all(self) -> None:
        try:
            for frame in self._stream:
                self._publish(frame)
        except Exception as error:
            if self._closing or not self.context.ok():
                return  # Ctrl-C removes the topics while a frame is being published
            self.failure = error if isinstance(error, M2HError) else M2HError(f"publishing failed: {error}")
            self._monitor.failed(str(self.failure))
            try:
                self._diagnose()
            finally:
                rclpy.try_shutdown(context=self.context)

    def _publish(self, frame: StreamFrame) -> None:
        message: Image = self._camera.message_of(frame.image)
        for publisher, pixels in self._outputs:
            publisher.publish(messages.fill(Image(), pixels(frame), message.header))
        if self._synced is not None:
            self._synced.publish(message)
        if self._synced_info is not None:
            self._publish_camera_info(self._synced_info, message)
        age = lag_seconds(messages.stamp_ns(message.header), self.get_clock().now().nanoseconds)
        self._monitor.published(age, frame.prediction.timings["inference"])
        if self._temporal is not None:
            self._count_filtered(self._temporal, frame)

    def _count_filtered(self, temporal: Temporal, frame: StreamFrame) -> None:
        located = self._camera.located_of(frame.image)
        temporal.published(located, frame.prediction)
        if located.pose is None:
            words = f"unfiltered: {located.reason}"
            self._monitor.note(words)
            self.get_logger().warning(words, throttle_duration_sec=_THROTTLE)

    def _publish_camera_info(self, publisher: Publisher, image: Image) -> None:
        info = self._camera_info
        if info is None:
            return
        if not messages.fits(info, image):
            self._monitor.note(
                f"CameraInfo is about {info.width}x{info.height} and images are {image.width}x{image.height}: held back"
            )
            return
        info = copy.copy(info)
        info.header = image.header
        publisher.publish(info)

    def close(self) -> None:
        """Stop the stream and release the engine and the topics. Idempotent."""
        self._closing = True
        self._ends.close()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join(2.0)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; return 0 after Ctrl-C or SIGTERM, 1 if self-test or stream failed, 2 on invalid parameters."""
    node: PerceptionNode | None = None
    failure: M2HError | None = None
    try:
        _init(args)
        node = PerceptionNode()
        node.start()
        _spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except M2HError as error:
        failure = error
    except (NameValidationException, ParameterException) as error:
        failure = M2HError(_one_line(error))
    except Exception:
        if rclpy.ok():
            raise
        # SIGTERM removes the topics while they are in use
    finally:
        _ignore_interrupts()
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    code = 0 if failure is None else failure.exit_code
    if failure is None and node is not None and node.failure is not None:
        failure, code = node.failure, 1
    if failure is not None:
        print(f"error: {failure}", file=sys.stderr)
    _leave_stuck_engines(code)
    return code


def _init(args: Sequence[str] | None) -> None:
    """Initialize rclpy. Raises M2HError if ROS rejects the command line."""
    try:
        rclpy.init(args=None if args is None else list(args))
    except (RuntimeError, ValueError) as error:
        raise M2HError(_one_line(error)) from None


class _Executor(SingleThreadedExecutor):
    """An executor that SIGTERM may interrupt during construction.

    rclpy's constructor fails if ROS was shut down just before, and its destructor then reads an attribute that the
    constructor did not set, and prints a traceback.
    """

    _sigint_gc = None


def _spin(node: PerceptionNode) -> None:
    """Run the node until ROS is shut down."""
    executor = _Executor()
    try:
        rclpy.spin(node, executor)
    finally:
        executor.shutdown()


def _one_line(error: Exception) -> str:
    """Return rclpy's message without the line that marks a character and without locations in its sources."""
    lines = [line.strip() for line in re.sub(r", at \S+:\d+", "", str(error)).splitlines()]
    return " ".join(line for line in lines if line.strip("^"))


def _ignore_interrupts() -> None:
    """Ignore further signals: under ros2 launch Ctrl-C arrives twice, from the terminal and from launch."""
    for _ in range(3):
        with contextlib.suppress(KeyboardInterrupt):  # a pending one
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            return


def _leave_stuck_engines(code: int) -> None:
    """Exit immediately if an engine is stuck: a normal interpreter shutdown would abort the process."""
    if any(thread.daemon and thread.name.startswith("m2h-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
