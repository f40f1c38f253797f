"""Options of `open_sequence`, and the lookup of poses in a trajectory file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.data.sequences.lines import counted
from m2h_deploy.data.sequences.trajectory import check_overlap, read_trajectory
from m2h_deploy.errors import M2HError

Poses = list[Pose | None]


@dataclass(frozen=True)
class Settings:
    """The options of `open_sequence`, which describes them."""

    poses: Path | None = None
    intrinsics: Intrinsics | None = None
    tolerance: float = 0.02
    offset: float = 0.0
    rate: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 1:
            raise M2HError(f"tolerance {self.tolerance:g}: must be 0 to 1 s")
        if not math.isfinite(self.offset):
            raise M2HError(f"offset {self.offset:g}: must be a number of seconds")
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate > 0):
            raise M2HError(f"rate {self.rate:g}: must be above 0 images per second")

    def poses_at(
        self, path: Path, times: Sequence[float], names: Sequence[str], folder: Path
    ) -> tuple[Poses, tuple[str, ...]]:
        """Read the trajectory `path` and return the poses of images, and lines about images without one.

        Args:
            path: A file in TUM's format.
            times: Time of each image, seconds.
            names: Name of each image, for the lines.
            folder: The sequence, for messages.

        Raises:
            M2HError: The trajectory cannot be read, or is from another time than all images.
        """
        trajectory = read_trajectory(path)
        moved = np.array(times) + self.offset
        check_overlap(trajectory, moved, folder, self.tolerance)
        poses = trajectory.at(moved, self.tolerance)
        lost = [name for name, pose in zip(names, poses, strict=True) if pose is None]
        return poses, trajectory.skipped + counted(f"{path}: images without a pose close in time", lost)
