"""Write synthetic rooms in the two layouts of NYUv2, so that everything that reads NYUv2 also reads them."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL, NYU40_CLASSES
from m2h_deploy.data.frame import Frame
from m2h_deploy.data.mat5 import write_numbers
from m2h_deploy.data.nyuv2 import MAPPING_NAME, SPLITS_NAME
from m2h_deploy.data.rooms.render import render_room, render_room_with_instances, room_intrinsics, room_name
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import check_folder, make_folder, whole_file, write_bytes
from m2h_deploy.files.provenance import check_output, mark_png

#: Called after each frame with how many are done and how many there will be.
Progress = Callable[[int, int], None]

#: The official file counts 894 raw classes.
_RAW_CLASSES = 894


def write_multitask_folder(
    folder: str | Path,
    frames: int,
    seed: int = 0,
    height: int = 240,
    width: int = 320,
    split: str = "val",
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Path:
    """Rooms 0..frames-1 of series `seed` as one split of a multi-task folder (see `NYUv2.from_folder`).

    A second call with another split and another seed adds to the same folder. The list gt_sets/SPLIT.txt is
    written last, so an interrupted call leaves no split behind that lacks files.

    Args:
        folder: made if it does not exist.
        frames: how many rooms.
        seed: the series of rooms.
        height: pixels.
        width: pixels.
        split: "train" or "val".
        progress: called after each frame.
        overwrite: replace the split, and files that are not rooms.

    Returns:
        `folder`.

    Raises:
        M2HError: the split is there already, shares rooms with another one, or a file is in the way.
    """
    folder = Path(folder)
    listing = folder / "gt_sets" / f"{split}.txt"
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
    for index in range(frames):
        frame = render_room(seed, index, height, width)
        _write_frame(folder, frame)
        names.append(frame.name)
        if progress:
            progress(index + 1, frames)
    write_bytes(listing, "".join(f"{name}\n" for name in names).encode())
    return folder


_FILES = {"images": ".png", "segmentation": ".png", "normals": ".png", "edge": ".png", "depth": ".npy"}


def _check_room(folder: Path, name: str) -> None:
    """Raises M2HError where a room's files would replace others. Arrays have no mark: they go by their image."""
    image = folder / "images" / f"{name}.png"
    for kind, suffix in _FILES.items():
        file = folder / kind / f"{name}{suffix}"
        if file.is_file():
            check_output(file if suffix == ".png" or not image.is_file() else image, "room", access=False)


def _write_frame(folder: Path, frame: Frame) -> None:
    assert frame.depth is not None and frame.normals is not None
    assert frame.semantics is not None and frame.edges is not None
    stored = np.where(frame.semantics == IGNORE_LABEL, 0, frame.semantics + 1).astype(np.uint8)
    colors = np.rint((frame.normals[..., ::-1] + 1.0) * 127.5).astype(np.uint8)
    _write_png(folder / "images" / f"{frame.name}.png", frame.image)
    _write_png(folder / "segmentation" / f"{frame.name}.png", stored)
    _write_png(folder / "normals" / f"{frame.name}.png", colors)
    _write_png(folder / "edge" / f"{frame.name}.png", frame.edges * np.uint8(255))
    data = BytesIO()
    np.save(data, frame.depth)
    write_bytes(folder / "depth" / f"{frame.name}.npy", data.getvalue())


def write_mat(
    path: str | Path,
    frames: int,
    seed: int = 0,
    height: int = 240,
    width: int = 320,
    train: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Rooms 0..frames-1 of series `seed` in the official layout (see `NYUv2.from_mat`), with its two side files.

    splits.mat and classMapping40.mat are written beside `path`. Raw labels 1..40 are the 40 classes
    themselves; an extra array `camera` (fx, fy, cx, cy) tells the loader that this is not NYUv2's camera.

    Args:
        path: the .mat file; usually nyu_depth_v2_labeled.mat.
        frames: how many rooms.
        seed: the series of rooms.
        height: pixels.
        width: pixels.
        train: how many of them, from the first, are for training; the others are for testing.
        progress: called after each frame.

    Returns:
        `path`.

    Raises:
        M2HError: one of the three files is there already, or `train` leaves nothing to test.
    """
    path = Path(path)
    splits, mapping = path.with_name(SPLITS_NAME), path.with_name(MAPPING_NAME)
    if not 0 <= train < frames:
        raise M2HError(f"{path}: {train} of {frames} frames for training, expected at least one left for testing")
    for file in (path, splits, mapping):
        if file.exists():
            raise M2HError(f"{file}: is there already; remove it or name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        # The frames first: they take long, and nothing else is in place if they are interrupted.
        _write_hdf5(partial, frames, seed, (height, width), progress)
        numbers = np.arange(1, frames + 1, dtype=np.uint16)[:, None]
        write_bytes(splits, write_numbers({"trainNdxs": numbers[:train], "testNdxs": numbers[train:]}))
        raw = np.full((1, _RAW_CLASSES), len(NYU40_CLASSES), np.uint8)
        raw[0, : len(NYU40_CLASSES)] = np.arange(1, len(NYU40_CLASSES) + 1)
        write_bytes(mapping, write_numbers({"mapClass": raw}))
    return path


def _write_hdf5(path: Path, frames: int, seed: int, size: tuple[int, int], progress: Progress | None) -> None:
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py", "data", f"writing {path}", error=error) from None
    height, width = size
    k = room_intrinsics(height, width)
    with h5py.File(path, "w") as file:

        def array(name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Any:
            return file.create_dataset(
                name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
            )

        images = array("images", (frames, 3, width, height), np.uint8)
        depths = array("depths", (frames, width, height), np.float32)
        labels = array("labels", (frames, width, height), np.uint16)
        instances = array("instances", (frames, width, height), np.uint8)
        file["camera"] = np.array([[k.fx, k.fy, k.cx, k.cy]])
        for index in range(frames):
            frame, objects = render_room_with_instances(seed, index, height, width)
            assert frame.depth is not None and frame.semantics is not None
            images[index] = frame.image[..., ::-1].transpose(2, 1, 0)
            depths[index] = frame.depth.T
            labels[index] = np.where(frame.semantics == IGNORE_LABEL, 0, frame.semantics.astype(np.uint16) + 1).T
            instances[index] = objects.T
            if progress:
                progress(index + 1, frames)


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    written, data = cv2.imencode(".png", np.ascontiguousarray(image), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not written:
        raise M2HError(f"{path}: cannot be encoded as PNG")
    write_bytes(path, mark_png(data.tobytes(), room=True))
