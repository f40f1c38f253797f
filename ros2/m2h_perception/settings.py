"""The node's parameters. Names shared with mono_hydra_perception have the same meaning."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequences.trajectory import ROUNDING
from m2h_deploy.errors import M2HError
from m2h_deploy.point_cloud import MAX_DECIMATION
from m2h_deploy.temporal.settings import FilterSettings
from m2h_perception.poses import rigid_transform

#: Upper limit of numeric parameters; larger values are most likely typing errors.
_MOST = 1_000_000

#: Parameters with numbers or names as a string, a list or a single number.
LISTS = ("dynamic_labels", "camera_in_body", "ground_labels")

#: Parameters that are settings of the temporal filter.
_FILTER = (
    "history_size",
    "max_history_age_s",
    "min_depth",
    "max_depth",
    "depth_gate_abs",
    "depth_gate_rel",
    "label_min_votes",
)


#: Values of the parameters that are a choice.
_CHOICES = {
    "image_transport": ("raw", "compressed"),
    "depth_encoding": ("32FC1", "16UC1"),
    "input_color_order": ("rgb", "bgr"),
    "output_reliability": ("reliable", "best_effort"),
    "temporal_pose_source": ("tf", "odometry"),
}


@dataclass(frozen=True)
class Settings:
    """The ROS parameters and their defaults, one field each. An empty topic is disabled; floats accept integers."""

    bundle: str = ""
    """Folder of the bundle."""
    device: str = ""
    """Device of the engine; empty: the bundle's."""
    threads: int = 0
    """Threads of the engine; 0: its own choice."""
    self_test: bool = True
    """Run the bundle's golden self-test before the first frame."""

    image_topic: str = "/camera/color/image_raw"
    image_transport: str = "raw"
    """raw (Image on `image_topic`) or compressed (CompressedImage on `image_topic`/compressed)."""
    camera_info_topic: str = "/camera/color/camera_info"
    image_depth_topic: str = "/camera/depth_cam/image_raw"
    depth_encoding: str = "32FC1"
    """32FC1 (meters) or 16UC1 (millimeters)."""
    label_ids_topic: str = "/camera/seg_cam/labels_argmax"
    """mono8, class index, after `label_remap`."""
    image_semantic_topic: str = "/camera/seg_cam/image_raw"
    """rgb8, in the bundle's colors."""
    normals_topic: str = ""
    """32FC3, unit vectors."""
    edges_topic: str = ""
    """32FC1, probability."""
    points_topic: str = ""
    """PointCloud2 in the camera's optical frame: x, y, z, rgb, label."""
    points_decimation: int = 1
    """Every n-th row and column of the image has points."""
    points_normals: bool = False
    """Whether points have normals."""
    points_dense: bool = False
    """Only the points with depth, unorganized; else one point for each pixel, NaN where depth is unknown."""
    ground_topic: str = ""
    """PointCloud2, dense: the points of `ground_labels`."""
    obstacles_topic: str = ""
    """PointCloud2, dense: all other points."""
    ground_labels: str = ""
    """Names of classes, or labels as published; empty: floor, floor mat, road, sidewalk and terrain."""
    publish_color_semantic: bool = False
    publish_synced_inputs: bool = True
    synced_rgb_topic: str = "/mono_hydra_perception/synced/image_raw"
    """The image that the outputs belong to: unmodified, or decoded and rectified."""
    synced_camera_info_topic: str = "/mono_hydra_perception/synced/camera_info"
    """The camera's last CameraInfo with the image's header."""

    latest_only: bool = True
    """Process the newest image and discard older ones; else process every image in order, for a recording."""
    input_queue_size: int = 256
    """Number of images that may wait without `latest_only`; the oldest is dropped when the queue is full."""
    output_queue_size: int = 10
    output_reliability: str = "reliable"
    """reliable or best_effort: QoS of the outputs."""
    skip_frequency: int = 1
    """Process one of this many images."""
    warn_output_lag_s: float = 5.0
    """Warn if an image is this old on arrival; 0: never."""
    max_output_lag_s: float = 0.0
    """Drop an image that is this old on arrival; 0: never."""

    input_color_order: str = "rgb"
    """rgb or bgr: color order of encodings that do not define it, such as 8UC3."""
    rectify: bool = False
    """Remove the lens distortion that CameraInfo states before anything else; outputs are in the rectified geometry."""
    depth_scale: float = 1.0
    """Factor on the published depth, 1 for meters."""
    label_remap: str = ""
    """YAML file; see `m2h_deploy.label_spaces.read`."""

    temporal_filter: bool = False
    """Fuse each prediction with those before it, by the camera's poses; see `m2h_deploy.temporal`."""
    temporal_pose_source: str = "tf"
    """tf or odometry."""
    odom_topic: str = "/odom"
    """nav_msgs/Odometry, for poses from odometry."""
    camera_in_body: str = ""
    """Seven numbers x y z qx qy qz qw: the camera's optical frame in the odometry's child_frame_id; empty: they are the
    same frame."""
    fixed_frame: str = "odom"
    """Frame in which the world stands still, for poses from tf."""
    camera_frame: str = ""
    """The camera's optical frame; empty: the image's frame_id."""
    tf_timeout: float = 0.05
    """Longest wait for a pose as new as the image, seconds."""
    tf_buffer_size: float = 10.0
    """Seconds of poses to keep."""
    history_size: int = FilterSettings.history_size
    max_history_age_s: float = FilterSettings.max_history_age_s
    min_depth: float = FilterSettings.min_depth
    max_depth: float = FilterSettings.max_depth
    depth_gate_abs: float = FilterSettings.depth_gate_abs
    depth_gate_rel: float = FilterSettings.depth_gate_rel
    label_min_votes: int = FilterSettings.label_min_votes
    dynamic_labels: str = ""
    """Labels of things that move, such as a person, after `label_remap`."""

    camera_timeout_s: float = 2.0
    """Time without an image after which diagnostics report an error."""
    engine_timeout_s: float = 10.0
    """An engine that takes longer is restarted."""
    diagnostics_topic: str = "/diagnostics"
    diagnostics_period_s: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(field.default, float):
                object.__setattr__(self, field.name, self._number(field.name))
        if not self.bundle:
            raise M2HError("parameter bundle: name the folder of a bundle, made by m2h-deploy build")
        if not self.image_topic:
            raise M2HError("parameter image_topic: name the camera's topic")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise M2HError(f"parameter {name} '{getattr(self, name)}': choose {' or '.join(choices)}")
        for name in ("input_queue_size", "output_queue_size", "skip_frequency"):
            self._require(name, 1 <= getattr(self, name) <= _MOST, f"from 1 to {_MOST}")
        for name in ("threads", "warn_output_lag_s", "max_output_lag_s"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("depth_scale", "camera_timeout_s", "engine_timeout_s", "diagnostics_period_s", "tf_buffer_size"):
            self._require(name, 0 < getattr(self, name) <= _MOST, f"above 0, and at most {_MOST}")
        # `close` waits for the thread that looks up poses.
        self._require("tf_timeout", 0 <= self.tf_timeout <= 1, "from 0 to 1")
        self._require("points_decimation", 1 <= self.points_decimation <= MAX_DECIMATION, f"from 1 to {MAX_DECIMATION}")
        for name in ("rectify", "points_topic", "ground_topic", "obstacles_topic"):
            if getattr(self, name) and not self.camera_info_topic:
                raise M2HError(f"parameter camera_info_topic is empty: {name} needs it")
        if self.temporal_filter:
            source = "fixed_frame" if self.temporal_pose_source == "tf" else "odom_topic"
            for name in ("camera_info_topic", source):
                if not getattr(self, name):
                    raise M2HError(f"parameter {name} is empty: the temporal filter needs it")
        self.filter_settings()
        _ = self.camera_pose

    @property
    def input_topic(self) -> str:
        """Topic of the images, by image_transport's names: that of compressed ones ends with /compressed."""
        if self.image_transport == "raw" or self.image_topic.endswith("/compressed"):
            return self.image_topic
        return f"{self.image_topic}/compressed"

    @property
    def ground(self) -> list[str | int]:
        """`ground_labels` as names and labels."""
        value: Any = self.ground_labels
        items = value if isinstance(value, Iterable) and not isinstance(value, str) else str(value).split(",")
        return [item for item in items if str(item).strip()]

    @property
    def camera_pose(self) -> Pose | None:
        """`camera_in_body` as a transform, or None."""
        values = self._numbers("camera_in_body")
        if not values:
            return None
        good = len(values) == 7 and all(map(math.isfinite, values)) and abs(math.hypot(*values[3:]) - 1) <= ROUNDING
        self._require("camera_in_body", good, "x y z qx qy qz qw in meters, with a quaternion of length 1")
        return rigid_transform(values[:3], values[3:])

    def check_bundle(self, manifest: Manifest) -> list[str]:
        """Return warnings about parameters that a bundle makes doubtful.

        Raises:
            M2HError: `label_remap` is about the network's classes, and the bundle has others.
        """
        if self.label_remap and manifest.label_map is not None:
            raise M2HError(
                f"parameter label_remap: the bundle itself maps labels to {manifest.label_map.name}: "
                "remove label_remap, or take a bundle with the network's own classes"
            )
        if self.depth_scale != 1 and manifest.depth_calibration is not None:
            return [f"depth_scale {self.depth_scale:g} multiplies depth that the bundle's calibration has corrected"]
        return []

    def filter_settings(self, remap: NDArray[np.uint8] | None = None) -> FilterSettings:
        """Return the settings of the temporal filter, which works on labels before `remap` (256 entries)."""
        labels = self._numbers("dynamic_labels")
        self._require("dynamic_labels", all(label in range(256) for label in labels), "labels from 0 to 255")
        if remap is not None:
            labels = tuple(np.flatnonzero(np.isin(remap, labels)))
        dynamic = tuple(int(label) for label in labels)
        return FilterSettings(dynamic_labels=dynamic, **{name: getattr(self, name) for name in _FILTER})

    def _numbers(self, name: str) -> tuple[float, ...]:
        value: Any = getattr(self, name)
        items = (
            value
            if isinstance(value, Iterable) and not isinstance(value, str)
            else str(value).replace(",", " ").split()
        )
        try:
            return tuple(map(float, items))
        except (TypeError, ValueError):
            raise M2HError(f"parameter {name} is {value}: must be numbers") from None

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        self._require(name, isinstance(value, int | float) and not isinstance(value, bool), "a number")
        return float(value)

    def _require(self, name: str, good: bool, what: str) -> None:
        if not good:
            raise M2HError(f"parameter {name} is {getattr(self, name)}: must be {what}")


def unknown_parameters(names: Iterable[str]) -> list[str]:
    """Return one line for each of `names` that is not a parameter, with the closest parameter name."""
    known = list(defaults())
    lines = []
    for name in sorted(set(names) - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "config/m2h_perception.yaml has all of them"
        lines.append(f"parameter {name} is unknown and has no effect: {hint}")
    return lines


def defaults() -> dict[str, Any]:
    """Return every parameter's default, by name."""
    return {field.name: field.default for field in fields(Settings)}
