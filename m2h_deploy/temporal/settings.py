"""Settings of the temporal filter.

Eight names are those of Mono-Hydra's temporal_pose_warp_filter_node; docs/mapping.md states which meanings and
defaults differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from m2h_deploy.errors import M2HError
from m2h_deploy.temporal.vote import NONE


@dataclass(frozen=True)
class FilterSettings:
    """How the temporal filter weighs the past; the defaults were measured on m2h-tiny (docs/mapping.md)."""

    history_size: int = 8
    """Frames that vote on a label, and number of measurements that the depth of a pixel averages in the long run."""
    max_history_age_s: float = 0.5
    """The past is dropped if it is older than this, seconds."""
    min_depth: float = 0.05
    """Nearer pixels are not fused, meters."""
    max_depth: float = 10.0
    """Farther pixels are not fused, meters."""
    depth_gate_abs: float = 0.1
    """Past and present are the same surface if their depths differ by at most this, meters, ..."""
    depth_gate_rel: float = 0.15
    """... or by at most this share of the depth. Beyond, trust in the past falls to nothing at twice the limit."""
    label_min_votes: int = 2
    """Frames that must agree on a label before it replaces that of the present frame."""
    dynamic_labels: tuple[int, ...] = ()
    """Numbers of the classes of things that move, such as a person: their pixels are never fused."""
    scale_gain: float = 0.8
    """Share of the scale's deviation from the past that is removed, 0 to 1; below 1, the network's mean returns."""
    scale_alpha: float = 0.7
    """Weight of the present frame in the filtered deviation of the scale, 0 to 1."""
    max_translation: float = 0.5
    """A camera that moved farther between two frames, in meters, has jumped: the past is dropped."""
    max_rotation: float = 45.0
    """The same for its rotation, degrees."""

    def __post_init__(self) -> None:
        self._require("history_size", 2 <= self.history_size <= 100, "2 to 100")
        self._require("label_min_votes", self.label_min_votes >= 1, "at least 1")
        self._require("min_depth", 0 <= self.min_depth < self.max_depth, "at least 0 and below max_depth")
        for name in ("depth_gate_abs", "depth_gate_rel"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("max_history_age_s", "max_translation", "max_rotation"):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in ("scale_gain", "scale_alpha"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        numbers = all(isinstance(label, Integral) and 0 <= label < NONE for label in self.dynamic_labels)
        self._require("dynamic_labels", numbers, f"numbers of classes, 0 to {NONE - 1}")

    def _require(self, name: str, good: bool, what: str) -> None:
        if not good:
            raise M2HError(f"temporal filter: {name} is {getattr(self, name)}: must be {what}")
