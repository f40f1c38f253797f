"""Write a walk through a synthetic room in the layout of TUM RGB-D, with labels beside it."""

from __future__ import annotations

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
from m2h_deploy.data.sequences.camera import CAMERA_NAME
from m2h_deploy.data.sequences.tum import IMAGES, SURFACE, TRUTH
from m2h_deploy.data.sequences.tum_writer import encode_depth, write_camera, write_list, write_poses
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_whole_folder, whole_folder
from m2h_deploy.files.ply import write_ply
from m2h_deploy.files.provenance import is_own

T = TypeVar("T")


def _known(value: T | None) -> T:
    assert value is not None, "a walk has every label and every pose"
    return value


_IMAGES: dict[str, Callable[[Frame], npt.NDArray[Any]]] = {
    "rgb": lambda frame: frame.image,
    "depth": lambda frame: encode_depth(_known(frame.depth)),
    "labels": lambda frame: encode_semantics(_known(frame.semantics)),
    "normals": lambda frame: encode_normals(_known(frame.normals)),
    "edges": lambda frame: _known(frame.edges) * np.uint8(255),
}
_ENTRIES = {*_IMAGES, *(f"{kind}.txt" for kind in _IMAGES), TRUTH, CAMERA_NAME, SURFACE}


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
    with whole_folder(folder, replace=overwrite, last=IMAGES) as temporary:
        for kind in _IMAGES:
            (temporary / kind).mkdir()
        _write_room(temporary, walk)
        times, poses = [], []
        for index, frame in enumerate(walk):
            for kind, stored in _IMAGES.items():
                write_room_png(temporary / kind / f"{frame.name}.png", stored(frame))
            times.append(_known(frame.timestamp))
            poses.append(frame.pose)
            if progress:
                progress(index + 1, len(walk))
        write_poses(temporary, zip(times, poses, strict=True))
        for kind in _IMAGES:
            write_list(temporary, kind, times)
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


def _write_room(folder: Path, walk: RoomWalk) -> None:
    write_camera(folder, walk.intrinsics, walk.size)
    vertices, triangles, labels = room_mesh(walk.room)
    colors = palette(len(walk.class_names))[labels]
    write_ply(folder / SURFACE, vertices, triangles, colors, labels)
