"""On-disk cache of labeled frames, memory-mapped, so that they are read or rendered only once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.causes import MachineError, machine_fault, reason
from m2h_deploy.data import IGNORE_LABEL, Dataset, Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.files.arrays import DAMAGED_ARRAY
from m2h_deploy.files.atomic import write_text
from m2h_deploy.training.progress import Progress, silent

#: Edge value of pixels that have no edge label.
UNKNOWN_EDGE = 255

# name: dtype and channels (0 for a map (H, W)). float16 resolves 10 m of depth to 4 mm.
_FIELDS: dict[str, tuple[str, int]] = {
    "image": ("uint8", 3),
    "depth": ("float16", 0),
    "semantics": ("uint8", 0),
    "normals": ("float16", 3),
    "edges": ("uint8", 0),
}
_UNKNOWN = {"depth": 0, "semantics": IGNORE_LABEL, "normals": 0, "edges": UNKNOWN_EDGE}
_VERSION = 1


@dataclass(frozen=True)
class FrameCache:
    """`count` frames of one size, memory-mapped.

    image uint8 (count, H, W, 3) BGR; depth float16 (count, H, W) meters, 0 unknown; semantics uint8 (count, H, W),
    255 unlabeled; normals float16 (count, H, W, 3), zeros unknown; edges uint8 (count, H, W), 0 or 1, 255 unknown.
    """

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float16]
    semantics: npt.NDArray[np.uint8]
    normals: npt.NDArray[np.float16]
    edges: npt.NDArray[np.uint8]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.image)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order, as metrics take them. Pixels without edge label count as no edge."""
        for i in range(len(self)):
            yield Frame(
                image=np.ascontiguousarray(self.image[i]),
                name=f"{i:06d}",
                depth=self.depth[i].astype(np.float32),
                normals=self.normals[i].astype(np.float32),
                semantics=np.ascontiguousarray(self.semantics[i]),
                edges=(self.edges[i] == 1).astype(np.uint8),
            )


def open_cache(
    dataset: Dataset,
    key: str,
    root: str | os.PathLike[str],
    size: tuple[int, int],
    *,
    count: int = 0,
    workers: int = 1,
    progress: Progress = silent,
) -> FrameCache:
    """Open the cache of a dataset, and build it first if it does not exist.

    Another key, size or number of frames makes another cache. An interrupted build leaves no files behind.

    Args:
        dataset: source of the frames.
        key: name of the data, unique under `root`.
        root: folder of all caches.
        size: (height, width) of the cached frames, pixels.
        count: number of frames, from the first; 0 for all.
        workers: processes that read or render the frames.
        progress: called after each frame.

    Raises:
        M2HError: the dataset is empty, or the disk is full.
    """
    frames = min(count, len(dataset)) if count else len(dataset)
    if not frames:
        raise M2HError(f"{key}: no frames to train on")
    identity = json.dumps([_VERSION, key, frames, *size])
    folder = Path(root) / f"frames-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if (fields := _open_fields(folder, frames, size)) is None:
        shutil.rmtree(folder, ignore_errors=True)  # absent or damaged
        read = _read_all(dataset, frames, size, workers)
        _build(read, frames, key, folder, size, progress)
        fields = _open_fields(folder, frames, size)
    if fields is None:
        raise M2HError(f"{folder} cannot be read, although it was just written: give another place for the cache")
    return FrameCache(**fields, class_names=tuple(dataset.class_names))


def _open_fields(folder: Path, count: int, size: tuple[int, int]) -> dict[str, npt.NDArray] | None:
    """Memory-map the arrays of a folder; return None if one is missing, truncated or of another shape."""
    try:
        fields = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _FIELDS}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DAMAGED_ARRAY as error:
        if isinstance(error, OSError) and (fault := machine_fault(error)) is not None:
            raise MachineError(f"cannot read {folder}: {fault}") from None
        return None
    whole = all(
        (fields[name].dtype, fields[name].shape) == (np.dtype(dtype), _shape(count, size, channels))
        for name, (dtype, channels) in _FIELDS.items()
    )
    return fields if whole else None


def _build(
    frames: Iterator[dict[str, npt.NDArray]], count: int, key: str, folder: Path, size: tuple[int, int], tell: Progress
) -> None:
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        arrays = {
            name: _new_array(temporary / f"{name}.npy", dtype, _shape(count, size, channels))
            for name, (dtype, channels) in _FIELDS.items()
        }
        for i, fields in enumerate(frames):
            for name, value in fields.items():
                arrays[name][i] = value
            tell(f"frames of {key}", i + 1, count, "")
        for array in arrays.values():
            array.flush()
        del arrays
        write_text(temporary / "about.json", json.dumps({"key": key, "frames": count, "size": size}))
        temporary.replace(folder)
    except OSError as error:
        raise MachineError(f"cannot keep frames in {folder.parent}: {reason(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _new_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.memmap:
    """Create a memory-mapped array with its disk blocks allocated.

    Writing to a page without a block ends the process (SIGBUS) when the disk is full.
    """
    array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _shape(count: int, size: tuple[int, int], channels: int) -> tuple[int, ...]:
    return (count, *size, channels) if channels else (count, *size)


def _read_all(dataset: Dataset, count: int, size: tuple[int, int], workers: int) -> Iterator[dict[str, npt.NDArray]]:
    if workers <= 1:
        yield from (_read(dataset, size, i) for i in range(count))
        return
    # Spawned, because forking a process that runs torch's threads can deadlock.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as p:
        yield from p.map(partial(_read, dataset, size), range(count), chunksize=8)


def _read(dataset: Dataset, size: tuple[int, int], index: int) -> dict[str, npt.NDArray]:
    return frame_fields(dataset[index], size)


def frame_fields(frame: Frame, size: tuple[int, int]) -> dict[str, npt.NDArray]:
    """Resize a frame to `size` (height, width), image by area, labels by nearest neighbor.

    Returns:
        The arrays of FrameCache by name, without the first dimension; labels that the frame lacks are all unknown.
    """
    fields: dict[str, npt.NDArray] = {"image": _resize(frame.image, size, cv2.INTER_AREA)}
    for name, unknown in _UNKNOWN.items():
        dtype, channels = _FIELDS[name]
        label = getattr(frame, name)
        if label is None:
            fields[name] = np.full(_shape(1, size, channels)[1:], unknown, dtype)
        else:
            # Converted after resizing, because OpenCV does not resize float16.
            fields[name] = _resize(label, size, cv2.INTER_NEAREST).astype(dtype)
    return fields


def _resize(array: npt.NDArray, size: tuple[int, int], interpolation: int) -> npt.NDArray:
    if array.shape[:2] == size:
        return array
    return np.asarray(cv2.resize(array, (size[1], size[0]), interpolation=interpolation))
