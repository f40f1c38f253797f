"""Open a sequence of Microsoft's 7-Scenes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import Size, as_depth
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.camera import find_camera
from m2h_deploy.data.sequences.images import common_size, read_depth
from m2h_deploy.data.sequences.numbered import Numbered, open_numbered
from m2h_deploy.data.sequences.planes import Planes
from m2h_deploy.data.sequences.settings import Settings

#: Camera that the data set recommends, for images of 640x480.
CAMERA = Intrinsics(585.0, 585.0, 320.0, 240.0)
#: Depth is stored in millimeters; this value is invalid.
INVALID = 65535


def seven_scenes_images(folder: Path) -> list[tuple[str, Path]]:
    """Return the name and the file of each color image, in the order of their numbers."""
    found = ((re.fullmatch(r"(frame-(\d+))\.color\.png", file.name), file) for file in folder.glob("frame-*.color.png"))
    numbered = sorted((int(match[2]), match[1], file) for match, file in found if match)
    return [(name, file) for _, name, file in numbered]


def open_seven_scenes(folder: Path, settings: Settings) -> Sequence:
    """Open a folder seq-XX: frame-000000.color.png, .depth.png and .pose.txt.

    Depth is 16-bit PNG in millimeters, unknown where 0 or 65535. The data set recommends one camera for both images,
    that of the depth, but the color image is not registered to it: its pixels are off by some pixels. Times follow from
    the numbers, at 30 images per second. Where tracking was lost, the matrix of the pose is not finite or is zero.

    Raises:
        M2HError: The images cannot be read, or the camera does not fit.
    """
    images = seven_scenes_images(folder)
    size = common_size(file for _, file in images)
    camera = find_camera(folder, size, settings.intrinsics, (CAMERA, (480, 640)))
    frames = [Numbered(int(name[6:]), name, file, folder / f"{name}.pose.txt") for name, file in images]
    depth = Planes("depth", {name: folder / f"{name}.depth.png" for name, _ in images}, _depth)
    return open_numbered(folder, frames, settings, camera, size, [depth])


def _depth(file: Path, size: Size) -> npt.NDArray[np.float32]:
    depth = read_depth(file, 1000.0)
    depth[depth == np.float32(INVALID) / np.float32(1000.0)] = 0
    return as_depth(depth, size, str(file))
