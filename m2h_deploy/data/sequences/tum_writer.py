"""Write depth, lists, poses and the camera of a sequence in the layout of TUM RGB-D, which `open_tum` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import Size
from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.data.sequences.camera import CAMERA_NAME
from m2h_deploy.data.sequences.tum import DEPTH_SCALE, TRUTH, time_name
from m2h_deploy.files.atomic import write_text


def encode_depth(depth: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Encode depth in meters as 1/5000 m; depth beyond 13.1 m is stored as that."""
    return np.clip(np.rint(depth * np.float64(DEPTH_SCALE)), 0, np.iinfo(np.uint16).max).astype(np.uint16)


def write_list(folder: Path, kind: str, times: Iterable[float]) -> None:
    """Write KIND.txt, the list of the files KIND/TIMESTAMP.png."""
    lines = (f"{time_name(time)} {kind}/{time_name(time)}.png" for time in times)
    write_text(folder / f"{kind}.txt", "\n".join([f"# {kind}: timestamp file", *lines]))


def write_poses(folder: Path, poses: Iterable[tuple[float, Pose | None]]) -> None:
    """Write the trajectory: times and poses, without those that are unknown or not finite."""
    lines = ["# camera to world, meters: timestamp tx ty tz qx qy qz qw"]
    for time, pose in poses:
        if pose is not None and np.isfinite(pose).all():
            numbers = [*pose[:3, 3], *quaternion(pose[:3, :3])]
            lines.append(" ".join([time_name(time), *(f"{number:.9f}" for number in numbers)]))
    write_text(folder / TRUTH, "\n".join(lines))


def write_camera(folder: Path, camera: Intrinsics, size: Size) -> None:
    """Write the intrinsics of images of `size`, (height, width)."""
    content = {"width": size[1], "height": size[0], **asdict(camera)}
    write_text(folder / CAMERA_NAME, json.dumps(content, indent=2))


def quaternion(rotation: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Convert a rotation matrix (3, 3) to a unit quaternion (x, y, z, w) with w >= 0."""
    (a, b, c), (d, e, f), (g, h, i) = np.asarray(rotation, np.float64)
    # The quaternion is the eigenvector of the largest eigenvalue (Bar-Itzhack), without a division by a small number.
    matrix = [
        [a - e - i, b + d, c + g, h - f],
        [b + d, e - a - i, f + h, c - g],
        [c + g, f + h, i - a - e, d - b],
        [h - f, c - g, d - b, a + e + i],
    ]
    found: npt.NDArray[np.float64] = np.linalg.eigh(np.array(matrix))[1][:, -1]
    return -found if found[3] < 0 else found
