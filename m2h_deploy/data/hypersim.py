"""Hypersim as its authors distribute it: NYUv2's 40 classes, synthetic, up to 20 m in the paper's evaluation."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.causes import failure
from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.conversion import as_depth, as_normals, as_semantics, check_median, check_meters, check_size
from m2h_deploy.data.frame import Frame, Intrinsics
from m2h_deploy.data.labels import boundaries
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.images import read_image
from m2h_deploy.files.names import require_file

#: Depth beyond this is treated as unknown.
MAX_DEPTH_M = 20.0
#: Range of the median depth of a frame, in meters. It is wide: some frames show a close object, or the view from a
#: window.
_MEDIAN = (0.01, 1000.0)
#: File name of the official v1 split.
SPLIT_NAME = "metadata_images_split_scene_v1.csv"
# Focal length in pixels at 1024x768 (60 degrees horizontally). The tilted lenses of some scenes are ignored.
_FOCAL = 886.81 / 1024

_SUFFIXES = (".tonemap.jpg", ".color.jpg")


_LABELS = ("depth_meters", "normal_cam", "semantic", "semantic_instance")


@dataclass(frozen=True, eq=False)
class Hypersim:
    """Hypersim frames in ROOT/ai_VVV_NNN/images/scene_cam_XX_final_preview and ..._geometry_hdf5."""

    root: Path
    files: tuple[Path, ...]

    @classmethod
    def open(cls, root: str | Path, split: str = "all") -> Hypersim:
        """Open the frames of a split.

        Args:
            root: the folder of the scenes; for a split it also has `SPLIT_NAME`.
            split: "train", "val", "test" or "all".

        Raises:
            M2HError: there are no frames, the split does not exist, or `SPLIT_NAME` is missing.
        """
        root = Path(root)
        pattern = "ai_*/images/scene_cam_*_final_preview/frame.*"
        files = sorted(p for p in root.glob(pattern) if p.name.endswith(_SUFFIXES))
        # A frame may exist in both renderings. The tone-mapped one is preferred; it is sorted last.
        unique = {_identity(p): p for p in files}
        if split != "all":
            wanted = _official_split(root / SPLIT_NAME, split)
            unique = {key: p for key, p in unique.items() if key in wanted}
        if not unique:
            raise M2HError(f"{root}: no Hypersim frames ({pattern}) for split '{split}'")
        return cls(root, tuple(unique.values()))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of NYUv2's 40 classes, in label order."""
        return NYU40_CLASSES

    @property
    def derived(self) -> frozenset[str]:
        """Computed labels: `edges`, from the segments."""
        return frozenset({"edges"})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return _read_frame(self.files[index])

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def files_of(self, index: int) -> tuple[Path, ...]:
        """List the image and the label files of a frame, whether they exist or not."""
        preview = self.files[index]
        return preview, *(_label_of(preview, kind) for kind in _LABELS)


def _identity(preview: Path) -> tuple[str, str, int]:
    camera = preview.parent.name.removeprefix("scene_").removesuffix("_final_preview")
    return preview.parents[2].name, camera, int(preview.name.split(".")[1])


def _official_split(path: Path, split: str) -> set[tuple[str, str, int]]:
    require_file(path, "the list of the official split")
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        wanted = {
            (row["scene_name"], row["camera_name"], int(row["frame_id"]))
            for row in rows
            if row["split_partition_name"] == split
        }
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        damaged = f"{path}: not the list of Hypersim's split (no usable column {error})"
        raise failure(error, f"cannot read {path}", damaged) from error
    if not wanted:
        raise M2HError(f"{path}: no split '{split}'")
    return wanted


def _label_of(preview: Path, kind: str) -> Path:
    geometry = preview.parent.with_name(preview.parent.name.replace("_final_preview", "_geometry_hdf5"))
    return geometry / f"{'.'.join(preview.name.split('.')[:2])}.{kind}.hdf5"


def _read_frame(preview: Path) -> Frame:
    image = read_image(preview)
    height, width = size = (int(image.shape[0]), int(image.shape[1]))

    def label(kind: str) -> tuple[npt.NDArray[Any], str]:
        path = _label_of(preview, kind)
        array = _dataset(path)
        check_size(array, size, str(path), kind)
        return array, str(path)

    camera = Intrinsics(_FOCAL * width, _FOCAL * width, (width - 1) / 2, (height - 1) / 2)
    # Published "depth" is the distance to the lens, which is longer than depth along the optical axis towards the
    # corners. NaN is valid: the ray hits no surface.
    distance, where = label("depth_meters")
    check_meters(distance, where)
    depth = np.nan_to_num(distance.astype(np.float64), nan=0.0, posinf=0.0)
    depth /= np.linalg.norm(camera.rays(height, width), axis=-1)
    # Checked before far pixels become unknown, which would hide depth stored in millimeters.
    check_median(depth, where, _MEDIAN)
    depth[depth > MAX_DEPTH_M] = 0.0
    # Hypersim's axes are x right, y up, z towards the camera; only x differs from `Frame.normals`.
    stored, where_normals = label("normal_cam")
    normals = np.nan_to_num(stored.astype(np.float32)) * np.array([-1, 1, 1], np.float32)
    raw, where_labels = label("semantic")
    semantics = as_semantics(np.maximum(raw, 0), size, where_labels, len(NYU40_CLASSES))
    objects, _ = label("semantic_instance")
    segments = np.where(raw > 0, raw.astype(np.int32) * 65536 + np.maximum(objects, 0), 0).astype(np.int32)
    return Frame(
        image,
        "_".join(str(part) for part in _identity(preview)),
        depth=as_depth(depth, size, where, _MEDIAN),
        normals=as_normals(normals, size, where_normals),
        semantics=semantics,
        edges=boundaries(segments),
        intrinsics=camera,
        derived=frozenset({"edges"}),
    )


def _dataset(path: Path) -> npt.NDArray[Any]:
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py", "data", f"reading {path}", error=error) from None
    try:
        with h5py.File(require_file(path, "label"), "r") as file:
            return np.asarray(file["dataset"])
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        damaged = f"{path}: not a Hypersim label (HDF5 with one array 'dataset'), or damaged"
        raise failure(error, f"cannot read {path}", damaged) from error
