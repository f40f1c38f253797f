"""Publishers of a frame's results: images, point clouds, and the inputs that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, PointCloud2, PointField

from m2h_deploy import Runtime
from m2h_deploy.point_cloud import PointCloud
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.stream.stream import StreamFrame
from m2h_perception import messages
from m2h_perception.calibration import Calibration, View
from m2h_perception.camera import Camera
from m2h_perception.clouds import Cloud, Clouds, fill_cloud
from m2h_perception.labels import ground_table
from m2h_perception.settings import Settings

#: Makes the pixels of one topic.
_ToPixels = Callable[[Prediction, View], messages.Pixels]


class Publishers:
    """The topics of a node's results. Construct and close on the executor's thread; `publish` on any one thread."""

    def __init__(
        self,
        node: Node,
        settings: Settings,
        runtime: Runtime,
        remap: NDArray[np.uint8] | None,
        *,
        calibration: Calibration,
        note: Callable[[str], None],
    ) -> None:
        """Create the publishers of the topics that the settings name and the bundle has.

        Args:
            node: that publishes.
            settings: the node's parameters.
            runtime: of the bundle.
            remap: label that is published for each class, uint8 (256,).
            calibration: the camera's.
            note: called with a warning for the diagnostics.

        Raises:
            M2HError: A parameter does not fit the bundle.
        """
        self._node, self._settings, self._calibration, self._note = node, settings, calibration, note
        self._runtime, self._remap = runtime, remap
        reliable = settings.output_reliability == "reliable"
        self._profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=settings.output_queue_size,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        self._all: list[Publisher] = []
        self._images: list[tuple[Publisher, _ToPixels]] = []
        self._clouds: Clouds | None = None
        self._warned = False
        self._cloud_topics: list[tuple[Publisher, Callable[[], Cloud]]] = []
        try:
            self._make_all()
        except BaseException:
            self.close()
            raise

    def _make_all(self) -> None:
        settings = self._settings
        self._make_images()
        self._make_clouds()
        self._synced = self._synced_info = None
        if settings.publish_synced_inputs and settings.synced_rgb_topic:
            self._synced = self._publisher(Image, settings.synced_rgb_topic)
        if settings.publish_synced_inputs and settings.synced_camera_info_topic and settings.camera_info_topic:
            self._synced_info = self._publisher(CameraInfo, settings.synced_camera_info_topic)

    @property
    def need_camera_info(self) -> bool:
        """Whether something that is published depends on CameraInfo."""
        return self._synced_info is not None or self._clouds is not None

    def close(self) -> None:
        """Destroy the publishers. Idempotent."""
        while self._all:
            self._node.destroy_publisher(self._all.pop())

    def _publisher(self, kind: Any, topic: str) -> Publisher:
        publisher = self._node.create_publisher(kind, topic, self._profile)
        self._all.append(publisher)
        return publisher

    def _has(self, topic: str, *tasks: str) -> bool:
        """Return whether a topic is to be published; warn if the bundle lacks what it needs."""
        missing = [task for task in tasks if task not in self._runtime.tasks]
        if topic and missing:
            self._node.get_logger().warning(f"{topic} is not published: the bundle has no {' and no '.join(missing)}")
        return bool(topic) and not missing

    def _make_images(self) -> None:
        settings, remap = self._settings, self._remap
        palette = messages.palette_table(self._runtime.manifest.classes.palette)
        color_topic = settings.image_semantic_topic if settings.publish_color_semantic else ""
        scale, encoding = settings.depth_scale, settings.depth_encoding

        def add(topic: str, task: str, pixels: Callable[[Any, View], messages.Pixels]) -> None:
            if self._has(topic, task):
                publisher = self._publisher(Image, topic)
                self._images.append((publisher, lambda result, view: pixels(getattr(result, task), view)))

        add(
            settings.image_depth_topic,
            "depth",
            lambda depth, view: messages.depth_pixels(depth, scale, encoding, view.outside),
        )
        add(settings.label_ids_topic, "semantics", lambda labels, _: messages.label_pixels(labels, remap))
        add(color_topic, "semantics", lambda labels, _: messages.color_pixels(labels, palette))
        add(settings.normals_topic, "normals", lambda normals, _: messages.float_pixels(normals))
        add(settings.edges_topic, "edges", lambda edges, _: messages.float_pixels(edges))

    def _make_clouds(self) -> None:
        settings, tasks = self._settings, self._runtime.tasks
        normals = settings.points_normals and "normals" in tasks
        if settings.points_topic and settings.points_normals and not normals:
            self._node.get_logger().warning(f"{settings.points_topic} has no normals: the bundle has none")
        points = self._has(settings.points_topic, "depth")
        ground = self._has(settings.ground_topic, "depth", "semantics")
        obstacles = self._has(settings.obstacles_topic, "depth", "semantics")
        if not (points or ground or obstacles):
            return
        split = ground or obstacles
        names = self._runtime.manifest.classes.names
        self._clouds = clouds = Clouds(
            PointCloud(
                decimation=settings.points_decimation,
                labels="semantics" in tasks,
                normals=normals,
                scale=settings.depth_scale,
            ),
            dense=settings.points_dense,
            ground=ground_table(settings.ground, names, self._remap) if split else None,
            remap=self._remap,
        )
        for wanted, topic, cloud in (
            (points, settings.points_topic, clouds.all),
            (ground, settings.ground_topic, clouds.ground),
            (obstacles, settings.obstacles_topic, clouds.obstacles),
        ):
            if wanted:
                self._cloud_topics.append((self._publisher(PointCloud2, topic), cloud))

    def publish(self, frame: StreamFrame) -> None:
        """Publish the results of a frame, each with the header of its message."""
        message, view = Camera.message_of(frame.image), Camera.view_of(frame.image)
        for publisher, pixels in self._images:
            publisher.publish(messages.fill(Image(), pixels(frame.prediction, view), message.header))
        self._publish_clouds(frame, message.header, view)
        if self._synced is not None:
            # An image that was neither decoded nor rectified is published as it came.
            unchanged = view.info is None and isinstance(message, Image)
            pixels = None if unchanged else messages.bgr_pixels(frame.image)
            self._synced.publish(message if pixels is None else messages.fill(Image(), pixels, message.header))
        if self._synced_info is not None:
            self._publish_camera_info(self._synced_info, frame.image, message.header, view)

    def _publish_clouds(self, frame: StreamFrame, header: Any, view: View) -> None:
        # A cloud is larger than all images together: it is made only if someone receives it.
        wanted = [(publisher, cloud) for publisher, cloud in self._cloud_topics if publisher.get_subscription_count()]
        if not wanted or self._clouds is None:
            return
        if view.intrinsics is None:
            self._note(f"no points: {view.reason}")
            return
        if view.distorted and not self._warned:
            self._warned = True
            words = (
                f"{self._settings.camera_info_topic} states lens distortion, which points ignore: set rectify to true"
            )
            self._node.get_logger().warning(words)
        self._clouds.take(frame.image, frame.prediction, view)
        for publisher, cloud in wanted:
            publisher.publish(fill_cloud(PointCloud2(), cloud(), header, PointField))

    def _publish_camera_info(self, publisher: Publisher, image: NDArray[np.uint8], header: Any, view: View) -> None:
        info = self._calibration.info if view.info is None else view.info
        if info is None:
            return
        height, width = image.shape[:2]
        if (info.width, info.height) not in ((0, 0), (width, height)):
            words = f"CameraInfo is about {info.width}x{info.height} and images are {width}x{height}: held back"
            self._note(words)
            return
        info = copy.copy(info)
        info.header = header
        publisher.publish(info)
