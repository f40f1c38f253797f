"""Write a walk through a synthetic room in the layout of TUM RGB-D, with labels beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import palette
from m2h_deploy.data.conversion import encode_normals, encode_semantics
from m2h_deploy.data.frame import Frame
from m2h_deploy.data.nyuv2_writer import Progress, write_room_png
from m2h_deploy.data.rooms.mesh import room_mesh
from m2h_deploy.data.rooms.walk import RoomWalk
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_whole_folder, whole_folder, write_text
from m2h_deploy.files.ply import write_ply
from m2h_deploy.files.provenance import is_own

T = TypeVar("T")

#: Units of stored depth per meter.
DEPTH_SCALE = 5000.0


def _known(value: T | None) -> T:
    assert value is not None, "a walk has every label and every pose"
    return value


_IMAGES: dict[str, Callable[[Frame], npt.NDArray[Any]]] = {
    "rgb": lambda frame: frame.image,
    "depth": lambda frame: np.rint(_known(frame.depth) * np.float64(DEPTH_SCALE)).astype(np.uint16),
    "labels": lambda frame: encode_semantics(_known(frame.semantics)),
    "normals": lambda frame: encode_normals(_known(frame.normals)),
    "edges": lambda frame: _known(frame.edges) * np.uint8(255),
}
_POSES, _CAMERA, _SURFACE = "groundtruth.txt", "camera.json", "surface.ply"
_ENTRIES = {*_IMAGES, *(f"{kind}.txt" for kind in _IMAGES), _POSES, _CAMERA, _SURFACE}


def write_sequence(
    folder: str | Path, walk: RoomWalk, progress: Progress | None = None, overwrite: bool = False
) -> Path:
    """Write the frames of a walk, its camera, its poses and the exact surface of its room.

    The folder appears when all is written; an interrupted call leaves nothing.

    Args:
        folder: a new or empty folder.
        walk: the frames.
        progress: called after each frame.
        overwrite: replace an earlier sequence.

    Returns:
        `folder`.

    Raises:
        M2HError: the folder exists and may not be replaced, or cannot be written.
    """
    folder = Path(folder)
    check_sequence_place(folder, overwrite=overwrite)
    with whole_folder(folder, replace=overwrite, last="rgb.txt") as temporary:
        for kind in _IMAGES:
            (temporary / kind).mkdir()
        _write_room(temporary, walk)
        poses = ["# camera to world, meters: timestamp tx ty tz qx qy qz qw"]
        for index, frame in enumerate(walk):
            for kind, stored in _IMAGES.items():
                write_room_png(temporary / kind / f"{frame.name}.png", stored(frame))
            numbers = [*_known(frame.pose)[:3, 3], *quaternion(_known(frame.pose)[:3, :3])]
            poses.append(" ".join([frame.name, *(f"{number:.9f}" for number in numbers)]))
            if progress:
                progress(index + 1, len(walk))
        write_text(temporary / _POSES, "\n".join(poses))
        for kind in _IMAGES:
            names = (f"{walk.timestamp(index):.6f}" for index in range(len(walk)))
            lines = [f"# {kind} images of m2h-deploy rooms: timestamp file", *(f"{n} {kind}/{n}.png" for n in names)]
            write_text(temporary / f"{kind}.txt", "\n".join(lines))
    return folder


def check_sequence_place(folder: Path, *, overwrite: bool = False) -> None:
    """Raise M2HError if a sequence may not be written to `folder`: only an earlier sequence is ever replaced."""
    if not folder.is_dir():
        check_whole_folder(folder)
        return
    found = {entry.name for entry in folder.iterdir()}
    if not found:
        return
    image = next(folder.glob("rgb/*.png"), None)
    if image is None or not is_own(image, "room") or not found <= _ENTRIES:
        raise M2HError(f"{folder} exists and is not a sequence that rooms wrote: give a folder that does not exist")
    if not overwrite:
        raise M2HError(f"{folder}: there is a sequence already; name another folder, or give --overwrite")


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


def _write_room(folder: Path, walk: RoomWalk) -> None:
    camera, (height, width) = walk.intrinsics, walk.size
    numbers = {"width": width, "height": height, "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}
    write_text(folder / _CAMERA, json.dumps(numbers))
    vertices, triangles, labels = room_mesh(walk.room)
    colors = palette(len(walk.class_names))[labels]
    write_ply(folder / _SURFACE, vertices, triangles, colors, labels)
