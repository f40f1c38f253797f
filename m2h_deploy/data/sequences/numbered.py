"""Sequences of numbered files: an image, its labels and the matrix of a pose for each number, without time stamps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.conversion import Size
from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.images import image_reader
from m2h_deploy.data.sequences.lines import counted
from m2h_deploy.data.sequences.planes import Planes, label_readers, moments
from m2h_deploy.data.sequences.settings import Poses, Settings
from m2h_deploy.data.sequences.trajectory import rigid

#: Images per second of Kinect and Structure sensors, which numbered recordings come from.
RATE = 30.0


@dataclass(frozen=True)
class Numbered:
    """An image and its number; the names of other files follow from the name of the image."""

    number: int
    name: str
    """Name of the frame."""
    image: Path
    pose: Path
    """Its matrix, whether the file exists or not."""


def open_numbered(
    folder: Path, frames: list[Numbered], settings: Settings, camera: Intrinsics, size: Size, labels: list[Planes]
) -> Sequence:
    """Assemble a sequence of at least one frame; labels may have names of files that do not exist."""
    rate = settings.rate or RATE
    times, names = [frame.number / rate for frame in frames], [frame.name for frame in frames]
    if settings.poses is not None:
        poses, lines = settings.poses_at(settings.poses, times, names, folder)
    else:
        poses, lines = matrix_poses(frames, folder)
    known = []
    for planes in labels:
        files = {name: file for name, file in planes.files.items() if file.is_file()}
        if files:
            without = [name for name in names if name not in files]
            lines += counted(f"{folder}: images without {planes.field}", without)
            known.append(replace(planes, files=files))
    images = [frame.image for frame in frames]
    return Sequence(
        folder,
        moments(names, times, poses, images, known),
        image_reader(size),
        camera,
        size,
        label_readers(known, size),
        lines,
        class_names=NYU40_CLASSES if any(planes.field == "semantics" for planes in known) else (),
    )


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
