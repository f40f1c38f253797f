"""Sequences of numbered files: an image, a depth map and the matrix of a pose for each number, without time stamps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import Size, as_depth
from m2h_deploy.data.frame import Frame, Intrinsics, Pose
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.images import read_sized
from m2h_deploy.data.sequences.lines import counted
from m2h_deploy.data.sequences.settings import Poses, Settings
from m2h_deploy.data.sequences.trajectory import rigid

#: Images per second of Kinect and Structure sensors, which numbered recordings come from.
RATE = 30.0


@dataclass(frozen=True)
class Numbered:
    """The files of one number, whether they exist or not."""

    number: int
    name: str
    image: Path
    depth: Path
    pose: Path


def open_numbered(
    folder: Path,
    frames: list[Numbered],
    settings: Settings,
    camera: Intrinsics,
    size: Size,
    read: Callable[[Path], npt.NDArray[np.float32]],
    surface: Path | None = None,
) -> Sequence:
    """Assemble a sequence of at least one frame, in the order of the numbers; `read` reads a depth map in meters."""
    rate = settings.rate or RATE
    times, names = [frame.number / rate for frame in frames], [frame.name for frame in frames]
    if settings.poses is not None:
        poses, lines = settings.poses_at(settings.poses, times, names, folder)
    else:
        poses, lines = matrix_poses(frames, folder)
    depths = {frame.name: frame.depth for frame in frames if frame.depth.is_file()}
    if depths:
        lines += counted(f"{folder}: images without depth", [name for name in names if name not in depths])
    moments = tuple(
        Moment(frame.name, time, pose, (frame.image, *([frame.depth] if frame.name in depths else [])))
        for frame, time, pose in zip(frames, times, poses, strict=True)
    )

    def frame_of(moment: Moment) -> Frame:
        image, depth = read_sized(moment.files[0], size), None
        if depths:
            file = depths.get(moment.name)
            depth = np.zeros(size, np.float32) if file is None else as_depth(read(file), size, str(file))
        return Frame(image, moment.name, depth=depth, intrinsics=camera, timestamp=moment.timestamp, pose=moment.pose)

    return Sequence(folder, moments, frame_of, camera, size, lines, surface)


def matrix_poses(frames: list[Numbered], folder: Path) -> tuple[Poses, tuple[str, ...]]:
    """Read the pose of each frame, a 4x4 matrix from camera to world, and return lines about frames without one."""
    poses: Poses = []
    missing, lost, damaged = [], [], []
    for frame in frames:
        matrix = read_matrix(frame.pose)
        pose: Pose | None = None if matrix is None else rigid(matrix)
        poses.append(pose)
        if pose is not None:
            continue
        if not frame.pose.is_file():
            missing.append(frame.name)
        elif matrix is not None and (not np.isfinite(matrix).all() or not matrix.any()):
            lost.append(frame.name)
        else:
            damaged.append(frame.name)
    return poses, (
        *counted(f"{folder}: images without a pose file", missing),
        *counted(f"{folder}: images at which tracking was lost", lost),
        *counted(f"{folder}: images whose pose file is not a rigid transform of 4x4 numbers", damaged),
    )


def read_matrix(file: Path) -> npt.NDArray[np.float64] | None:
    """Read a 4x4 matrix from a text file; None if the file is missing or holds anything else."""
    try:
        values = [float(word) for word in file.read_text("utf-8").split()]
    except (OSError, ValueError):
        return None
    return np.array(values).reshape(4, 4) if len(values) == 16 else None
