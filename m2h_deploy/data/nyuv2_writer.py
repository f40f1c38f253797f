"""Write synthetic rooms in NYUv2's multi-task layout, so that they can replace NYUv2."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import encode_normals, encode_semantics
from m2h_deploy.data.frame import Frame
from m2h_deploy.data.rooms.render import Rooms, room_name
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder, write_bytes
from m2h_deploy.files.provenance import check_output, mark_png

#: Called after each frame with the number of frames that are done and the total number.
Progress = Callable[[int, int], None]


def write_multitask_folder(
    folder: str | Path,
    rooms: Rooms,
    *,
    split: str = "val",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Write rooms as one split of a multi-task folder (see `NYUv2.from_folder`).

    A second call with another split and another seed adds to the same folder. The list gt_sets/SPLIT.txt is written
    last, so that an interrupted call leaves no incomplete split.

    Args:
        folder: created if it does not exist.
        rooms: the rooms to render.
        split: "train" or "val".
        progress: called after each frame.
        overwrite: replace the split, and files that are not rooms.

    Returns:
        `folder`.

    Raises:
        M2HError: the split exists, shares rooms with another split, or would replace another file.
    """
    folder = Path(folder)
    listing = folder / "gt_sets" / f"{split}.txt"
    frames, seed = len(rooms), rooms.seed
    if frames < 1:
        raise M2HError(f"{folder}: {frames} frames asked for, expected at least 1")
    if split not in ("train", "val"):
        raise M2HError(f"{folder}: split '{split}', expected train or val")
    if listing.exists() and not overwrite:
        raise M2HError(f"{listing}: this split is there already; name another folder, or overwrite it")
    for other in (folder / "gt_sets").glob("*.txt"):
        names = other.read_text(encoding="utf-8").split()
        if other != listing and any(name.startswith(f"room_{seed}_") for name in names):
            raise M2HError(f"{other}: already has rooms of seed {seed}; use another seed for '{split}'")
    for kind in (*_FILES, "gt_sets"):
        check_folder(folder / kind)
    for index in range(0 if overwrite else frames):
        _check_room(folder, room_name(seed, index))
    for kind in (*_FILES, "gt_sets"):
        make_folder(folder / kind)
    listing.unlink(missing_ok=True)
    names = []
    for index, frame in enumerate(rooms):
        _write_frame(folder, frame)
        names.append(frame.name)
        if progress:
            progress(index + 1, frames)
    write_bytes(listing, "".join(f"{name}\n" for name in names).encode())
    return folder


_FILES = {"images": ".png", "segmentation": ".png", "normals": ".png", "edge": ".png", "depth": ".npy"}


def _check_room(folder: Path, name: str) -> None:
    """Raise M2HError if a room's files would replace files of another origin; a .npy file is judged by its image."""
    image = folder / "images" / f"{name}.png"
    for kind, suffix in _FILES.items():
        file = folder / kind / f"{name}{suffix}"
        if file.is_file():
            check_output(file if suffix == ".png" or not image.is_file() else image, "room", access=False)


def _write_frame(folder: Path, frame: Frame) -> None:
    assert frame.depth is not None and frame.normals is not None
    assert frame.semantics is not None and frame.edges is not None
    write_room_png(folder / "images" / f"{frame.name}.png", frame.image)
    write_room_png(folder / "segmentation" / f"{frame.name}.png", encode_semantics(frame.semantics))
    write_room_png(folder / "normals" / f"{frame.name}.png", encode_normals(frame.normals))
    write_room_png(folder / "edge" / f"{frame.name}.png", frame.edges * np.uint8(255))
    data = BytesIO()
    np.save(data, frame.depth)
    write_bytes(folder / "depth" / f"{frame.name}.npy", data.getvalue())


def write_room_png(path: Path, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
    """Write an image as PNG, with the mark by which m2h-deploy knows its rooms."""
    written, data = cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not written:
        raise M2HError(f"{path}: cannot be encoded as PNG")
    write_bytes(path, mark_png(data.tobytes(), room=True))
