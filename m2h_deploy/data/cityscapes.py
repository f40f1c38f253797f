"""Cityscapes: 19 classes, and depth from the precomputed disparity, up to 80 m in the paper's evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.causes import failure
from m2h_deploy.data.classes import CITYSCAPES_CLASSES, IGNORE_LABEL
from m2h_deploy.data.conversion import as_depth, check_median, check_size
from m2h_deploy.data.frame import Frame, Intrinsics
from m2h_deploy.data.labels import boundaries
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_image, read_plane

#: Depth beyond this is treated as unknown.
MAX_DEPTH_M = 80.0
#: Range of the median depth of a frame, in meters.
_MEDIAN = (0.5, 80.0)

# Camera of the recordings at 2048x1024 and its stereo baseline in meters, used for a frame without camera file.
_CAMERA = Intrinsics(2262.52, 2265.30, 1096.98, 513.137)
_BASELINE = 0.209313

#: Label id of each train id, from the definition of the data set.
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


@dataclass(frozen=True, eq=False)
class Cityscapes:
    """Cityscapes below ROOT: leftImg8bit, and gtFine, disparity and camera as far as they exist."""

    root: Path
    split: str
    files: tuple[Path, ...]

    @classmethod
    def open(cls, root: str | Path, split: str = "val") -> Cityscapes:
        """Open a split.

        Args:
            root: the folder that has leftImg8bit.
            split: "train", "val" or "test".

        Raises:
            M2HError: the split has no images.
        """
        root = Path(root)
        files = tuple(sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")))
        if not files:
            raise M2HError(f"{root / 'leftImg8bit' / split}: no CITY/*_leftImg8bit.png for split '{split}'")
        return cls(root, split, files)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the 19 classes, in label order."""
        return CITYSCAPES_CLASSES

    @property
    def derived(self) -> frozenset[str]:
        """Computed labels: `edges`, from the segments of gtFine; empty without gtFine."""
        return frozenset({"edges"}) if (self.root / "gtFine").is_dir() else frozenset()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image = read_image(self.files[index])
        height, width = size = (int(image.shape[0]), int(image.shape[1]))
        name = self.files[index].name.removesuffix("_leftImg8bit.png")
        camera, baseline = self._camera(name, height, width)
        depth = semantics = edges = None
        if (self.root / "disparity").is_dir():
            path = self._path("disparity", name, "disparity.png")
            depth = _depth(read_plane(path, "disparity"), size, str(path), camera.fx * baseline)
        if (self.root / "gtFine").is_dir():
            path = self._path("gtFine", name, "gtFine_labelIds.png")
            semantics = _semantics(read_plane(path, "labels"), size, str(path))
            path = self._path("gtFine", name, "gtFine_instanceIds.png")
            objects = read_plane(path, "instances")
            check_size(objects, size, str(path), "instances")
            segments = np.where(semantics == IGNORE_LABEL, 0, objects.astype(np.int32))
            edges = boundaries(segments)
        return Frame(
            image, name, depth=depth, semantics=semantics, edges=edges, intrinsics=camera, derived=self.derived
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def files_of(self, index: int) -> tuple[Path, ...]:
        """List the files of a frame, image first, then all its label and camera files, whether they exist or not."""
        name = self.files[index].name.removesuffix("_leftImg8bit.png")
        kinds = (
            ("disparity", "disparity.png"),
            ("gtFine", "gtFine_labelIds.png"),
            ("gtFine", "gtFine_instanceIds.png"),
            ("camera", "camera.json"),
        )
        return self.files[index], *(self._path(kind, name, ending) for kind, ending in kinds)

    def _path(self, kind: str, name: str, ending: str) -> Path:
        return self.root / kind / self.split / name.split("_")[0] / f"{name}_{ending}"

    def _camera(self, name: str, height: int, width: int) -> tuple[Intrinsics, float]:
        path = self._path("camera", name, "camera.json")
        if not path.is_file():
            return _CAMERA.scaled(height, width, 1024, 2048), _BASELINE
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            k = stored["intrinsic"]
            camera = Intrinsics(float(k["fx"]), float(k["fy"]), float(k["u0"]), float(k["v0"]))
            baseline = float(stored["extrinsic"]["baseline"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            damaged = f"{path}: not a Cityscapes camera file ({error})"
            raise failure(error, f"cannot read {path}", damaged) from error
        if not all(0 < value < math.inf for value in (camera.fx, camera.fy, baseline)):
            raise M2HError(f"{path}: focal lengths and the baseline must be finite and above 0")
        return camera, baseline


def _depth(
    stored: npt.NDArray[np.integer], size: tuple[int, int], where: str, focal_times_baseline: float
) -> npt.NDArray[np.float32]:
    """Convert 16-bit disparity p into depth in meters: (p - 1) / 256 pixels, p = 0 where unknown."""
    if stored.dtype != np.uint16:
        raise M2HError(f"{where}: disparity is {stored.dtype}, expected 16 bits")
    disparity = (stored.astype(np.float64) - 1.0) / 256.0
    depth = np.divide(focal_times_baseline, disparity, out=np.zeros(stored.shape), where=disparity > 0)
    # Checked before far pixels become unknown, which would hide disparity stored in whole pixels.
    check_median(depth, where, _MEDIAN)
    depth[depth > MAX_DEPTH_M] = 0.0
    return as_depth(depth, size, where, _MEDIAN)


def _semantics(stored: npt.NDArray[np.integer], size: tuple[int, int], where: str) -> npt.NDArray[np.uint8]:
    check_size(stored, size, where, "labels")
    if stored.max() > 255 or (stored.max() > 33 and stored.max() != 255):
        raise M2HError(f"{where}: label {stored.max()}, expected Cityscapes label ids 0..33")
    table = np.full(256, IGNORE_LABEL, np.uint8)
    table[list(_LABEL_IDS)] = np.arange(len(_LABEL_IDS))
    return table[stored]
