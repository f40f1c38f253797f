"""The node's parameters. Names that mono_hydra_perception has too mean the same here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from m2h_deploy.errors import M2HError

#: Of seconds, of images, and of what depth is multiplied by: beyond it a parameter is a slip of the hand.
_MOST = 1_000_000


@dataclass(frozen=True)
class Settings:
    """One field a ROS parameter, with its default. An empty topic is off. A whole number does for a float."""

    bundle: str = ""
    """Folder of the bundle."""
    device: str = ""
    """Empty: what the bundle says."""
    threads: int = 0
    """Of the engine; 0: its own choice."""
    self_test: bool = True
    """Run the bundle's golden self-test before the first frame."""

    image_topic: str = "/camera/color/image_raw"
    camera_info_topic: str = "/camera/color/camera_info"
    image_depth_topic: str = "/camera/depth_cam/image_raw"
    """32FC1, meters."""
    label_ids_topic: str = "/camera/seg_cam/labels_argmax"
    """mono8, class index, after `label_remap`."""
    image_semantic_topic: str = "/camera/seg_cam/image_raw"
    """rgb8, in the bundle's colors."""
    normals_topic: str = ""
    """32FC3, unit vectors."""
    edges_topic: str = ""
    """32FC1, probability."""
    publish_color_semantic: bool = False
    publish_synced_inputs: bool = True
    synced_rgb_topic: str = "/mono_hydra_perception/synced/image_raw"
    """The image that the outputs belong to, as it came."""
    synced_camera_info_topic: str = "/mono_hydra_perception/synced/camera_info"
    """The camera's last CameraInfo with the image's header."""

    latest_only: bool = True
    """Answer the newest image and forget what is older; else every image in turn, for a recording."""
    input_queue_size: int = 256
    """Images that wait where `latest_only` is off; the oldest goes when it is full."""
    output_queue_size: int = 10
    skip_frequency: int = 1
    """Take one image of this many."""
    warn_output_lag_s: float = 5.0
    """Say so when an image is this old when it arrives; 0: never."""
    max_output_lag_s: float = 0.0
    """Drop an image that is this old when it arrives; 0: none."""

    input_color_order: str = "rgb"
    """Of encodings that do not say it, such as 8UC3."""
    depth_scale: float = 1.0
    """Meters are multiplied by it."""
    label_remap: str = ""
    """YAML file; see `m2h_perception.labels`."""

    camera_timeout_s: float = 2.0
    """Without an image for this long the camera counts as dead."""
    engine_timeout_s: float = 10.0
    """An engine that takes longer is opened again."""
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
        if self.input_color_order not in ("rgb", "bgr"):
            raise M2HError(f"parameter input_color_order '{self.input_color_order}': choose rgb or bgr")
        for name in ("input_queue_size", "output_queue_size", "skip_frequency"):
            self._require(name, 1 <= getattr(self, name) <= _MOST, f"from 1 to {_MOST}")
        for name in ("threads", "warn_output_lag_s", "max_output_lag_s"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("depth_scale", "camera_timeout_s", "engine_timeout_s", "diagnostics_period_s"):
            self._require(name, 0 < getattr(self, name) <= _MOST, f"above 0, and at most {_MOST}")

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        self._require(name, isinstance(value, int | float) and not isinstance(value, bool), "a number")
        return float(value)

    def _require(self, name: str, good: bool, what: str) -> None:
        if not good:
            raise M2HError(f"parameter {name} is {getattr(self, name)}: must be {what}")


def unknown_parameters(names: Iterable[str]) -> list[str]:
    """Return one line for each of `names` that is not a parameter, with the nearest parameter."""
    known = list(defaults())
    lines = []
    for name in sorted(set(names) - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "config/m2h_perception.yaml has all of them"
        lines.append(f"parameter {name} is unknown and has no effect: {hint}")
    return lines


def defaults() -> dict[str, Any]:
    """Every parameter's default, by name."""
    return {field.name: field.default for field in fields(Settings)}
