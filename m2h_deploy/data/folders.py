"""Image folders without annotations: plain images, and pairs of color and depth images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2h_deploy.data.conversion import as_depth
from m2h_deploy.data.frame import NYU_INTRINSICS, Frame, Intrinsics
from m2h_deploy.errors import M2HError, one_line
from m2h_deploy.files.images import decode_picture, image_files, may_be_map, read_image, read_plane


@dataclass(frozen=True, eq=False)
class _Files(ABC):
    """Data set with one frame per file and without classes."""

    folder: Path
    files: tuple[Path, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: there are no semantic classes."""
        return ()

    @property
    def derived(self) -> frozenset[str]:
        """Empty: no labels are computed."""
        return frozenset()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(self.files[index])

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def files_of(self, index: int) -> tuple[Path, ...]:
        """List the files of a frame, image first."""
        return (self.files[index],)

    @abstractmethod
    def _read(self, file: Path) -> Frame:
        """Read the frame of one file."""


@dataclass(frozen=True, eq=False)
class ImageFolder(_Files):
    """Pictures directly in a folder, sorted by name; no labels.

    Depth maps and label maps among them are skipped (see `m2h_deploy.files.images`) and listed in `skipped`. A file
    that cannot be read is not skipped: it raises when its frame is read.
    """

    skipped: tuple[str, ...] = ()
    """A line for each skipped file, with the reason."""

    @classmethod
    def open(cls, folder: str | Path) -> ImageFolder:
        """Open a folder of pictures.

        Raises:
            M2HError: the folder has no pictures.
        """
        folder = Path(folder)
        kinds = {file: _kind(file) for file in image_files(folder)}
        files = tuple(file for file, kind in kinds.items() if kind is None)
        skipped = tuple(one_line(f"{file} is a {kind}, not a picture: skipped") for file, kind in kinds.items() if kind)
        if not files:
            raise M2HError(f"{folder} holds no pictures: {skipped[0]}")
        return cls(folder, files, skipped)

    def _read(self, file: Path) -> Frame:
        return Frame(read_image(file), file.stem)


@dataclass(frozen=True, eq=False)
class RGBDPairs(_Files):
    """Pairs of rgb_NUMBER.jpg (or .png) and sync_depth_NUMBER.png, in the folder or in scene folders below it.

    Depth is in 16-bit millimeters, 0 where unknown. The raw NYUv2 recordings are commonly distributed like this after
    synchronization. Frames of 640x480 get the intrinsics of NYUv2's color camera.
    """

    @classmethod
    def open(cls, folder: str | Path) -> RGBDPairs:
        """Open a folder of pairs.

        Raises:
            M2HError: the folder has no rgb_* image.
        """
        folder = Path(folder)
        files = tuple(sorted(p for p in folder.rglob("rgb_*") if p.suffix.lower() in (".jpg", ".png")))
        if not files:
            raise M2HError(f"{folder}: no rgb_*.jpg or rgb_*.png in this folder or below")
        return cls(folder, files)

    def files_of(self, index: int) -> tuple[Path, ...]:
        """List the color image and the depth image of a frame."""
        return self.files[index], _depth_beside(self.files[index])

    def _read(self, file: Path) -> Frame:
        image = read_image(file)
        size = (int(image.shape[0]), int(image.shape[1]))
        partner = _depth_beside(file)
        stored = read_plane(partner, "depth")
        if stored.dtype != np.uint16:
            raise M2HError(f"{partner}: depth is {stored.dtype}, expected 16-bit millimeters")
        depth = as_depth(stored.astype(np.float32) / np.float32(1000.0), size, str(partner))
        camera: Intrinsics | None = NYU_INTRINSICS if size == (480, 640) else None
        name = file.relative_to(self.folder).with_suffix("").as_posix()
        return Frame(image, name, depth=depth, intrinsics=camera)


def _depth_beside(file: Path) -> Path:
    return file.with_name("sync_depth_" + file.stem.removeprefix("rgb_") + ".png")


def _kind(file: Path) -> str | None:
    """Name the kind of map that a file is; None for a picture, and for a file that cannot be read."""
    try:
        return decode_picture(file)[1] if may_be_map(file) else None
    except M2HError:
        return None
