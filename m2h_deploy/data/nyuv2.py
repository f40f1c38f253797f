"""NYUv2 in both layouts: the official labeled .mat file, and the multi-task folder.

The official file (nyu_depth_v2_labeled.mat, MATLAB v7.3, which is HDF5) has images, depths and labels of 894 classes.
splits.mat lists the frames for training and for testing, and classMapping40.mat maps to 40 classes. Normals and
boundaries are not included: they are derived here, and marked as derived.

The multi-task folder is the training data of MTI-Net, ATRC and InvPT, and the data of the paper's Table I.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.causes import failure
from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.conversion import as_depth, as_edges, as_normals, as_semantics, decode_normals
from m2h_deploy.data.frame import NYU_INTRINSICS, Frame, Intrinsics
from m2h_deploy.data.labels import boundaries, normals_from_depth
from m2h_deploy.data.mat5 import read_numbers
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.arrays import read_array
from m2h_deploy.files.images import read_image, read_plane

#: Names of the official files.
MAT_NAME, SPLITS_NAME, MAPPING_NAME = "nyu_depth_v2_labeled.mat", "splits.mat", "classMapping40.mat"

_SPLIT_KEYS = {"train": "trainNdxs", "val": "testNdxs", "test": "testNdxs"}
_FOLDERS = ("depth", "normals", "segmentation", "edge")


@dataclass(frozen=True, eq=False)
class NYUv2:
    """Frames of NYUv2, read one at a time. Create it with `from_mat` or `from_folder`.

    ```python
    data = NYUv2.from_folder("NYUDv2", split="val")
    for frame in data:
        frame.image, frame.depth, frame.semantics
    ```
    """

    source: Path
    split: str
    names: tuple[str, ...]
    derived: frozenset[str]
    _read: Callable[[int], Frame]
    files_of: Callable[[int], tuple[Path, ...]]
    """Lists the files that a frame is read from."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the 40 classes, in label order."""
        return NYU40_CLASSES

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._read(index)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    @classmethod
    def from_mat(cls, mat: str | Path, split: str = "val") -> NYUv2:
        """Open the official labeled file.

        Args:
            mat: nyu_depth_v2_labeled.mat, with splits.mat (795 frames for training, 654 for testing) and
                classMapping40.mat beside it.
            split: "train", "val" or "test" (the same frames) or "all".

        Raises:
            M2HError: a file is missing, or its content does not match its name.
        """
        mat = Path(mat)
        mapping = mat.with_name(MAPPING_NAME)
        table = _read_mapping(mapping)
        contents = _MatFile.open(mat, table)
        if split == "all":
            numbers = np.arange(contents.count)
        else:
            numbers = _read_split(mat.with_name(SPLITS_NAME), split)
            if numbers.min() < 0 or numbers.max() >= contents.count:
                raise M2HError(f"{mat}: has {contents.count} frames, but its splits ask for number {numbers.max() + 1}")
        names = tuple(f"{number + 1:04d}" for number in numbers)

        def read(index: int) -> Frame:
            return contents.frame(int(numbers[index]), names[index])

        return cls(mat, split, names, frozenset({"normals", "edges"}), read, lambda index: (mat, mapping))

    @classmethod
    def from_folder(cls, folder: str | Path, split: str = "val") -> NYUv2:
        """Open the multi-task folder.

        It has gt_sets/train.txt and gt_sets/val.txt (names, one per line), images/NAME.png or .jpg, and for the labels
        segmentation/NAME.png (0 unlabeled, 1..40), depth/NAME.npy (meters), normals/NAME.png ((n + 1) / 2 * 255) or
        .npy, edge/NAME.png (0 or 255) or .npy. A label whose folder is absent is None in every frame.

        Args:
            folder: the folder that has gt_sets.
            split: "train", "val" (or "test"), or "all" for both.

        Raises:
            M2HError: the split does not exist or is empty.
        """
        folder = Path(folder)
        names = _read_lists(folder, split)
        present = frozenset(kind for kind in _FOLDERS if (folder / kind).is_dir())

        def read(index: int) -> Frame:
            return _read_folder_frame(folder, names[index], present)

        def files_of(index: int) -> tuple[Path, ...]:
            candidates = [folder / kind / names[index] for kind in ("images", *sorted(present))]
            return tuple(_with_suffix(path, ".png", ".jpg", ".npy") for path in candidates)

        return cls(folder, split, names, frozenset(), read, files_of)


def _read_lists(folder: Path, split: str) -> tuple[str, ...]:
    lists = folder / "gt_sets"
    files = {"test": ["val"], "all": ["train", "val"]}.get(split, [split])
    found = [lists / f"{name}.txt" for name in files if (lists / f"{name}.txt").is_file()]
    if not found:
        there = ", ".join(sorted(p.stem for p in lists.glob("*.txt"))) or "no lists at all"
        raise M2HError(f"{lists}: no list for split '{split}'; there is {there}")
    try:
        lines = [line.strip() for path in found for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        damaged = f"{found[0]}: not a readable list of names, one a line"
        raise failure(error, f"cannot read {found[0]}", damaged) from error
    names = [line for line in lines if line]
    if not names:
        raise M2HError(f"{found[0]}: the list is empty")
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
            raise M2HError(f"{found[0]}: {name!r} is not the name of a frame in this folder")
    return tuple(names)


def _with_suffix(path: Path, *suffixes: str) -> Path:
    """Return the first of these files that exists, or the first candidate."""
    candidates = [path.with_name(path.name + suffix) for suffix in suffixes]
    return next((p for p in candidates if p.is_file()), candidates[0])


def _read_folder_frame(folder: Path, name: str, present: frozenset[str]) -> Frame:
    def path(kind: str, *suffixes: str) -> Path:
        return _with_suffix(folder / kind / name, *suffixes)

    image = read_image(path("images", ".png", ".jpg"))
    size = (int(image.shape[0]), int(image.shape[1]))
    depth = semantics = normals = edges = None
    if "depth" in present:
        file = path("depth", ".npy")
        depth = as_depth(read_array(file, "depth"), size, str(file))
    if "normals" in present:
        file = path("normals", ".png", ".npy")
        stored = decode_normals(file) if file.suffix == ".png" else read_array(file, "normals")
        normals = as_normals(stored, size, str(file))
    if "segmentation" in present:
        file = path("segmentation", ".png")
        semantics = as_semantics(read_plane(file, "segmentation"), size, str(file), len(NYU40_CLASSES))
    if "edge" in present:
        file = path("edge", ".png", ".npy")
        plane = read_plane(file, "edge") if file.suffix == ".png" else read_array(file, "edge")
        edges = as_edges(plane, size, str(file))
    return Frame(image, name, depth=depth, normals=normals, semantics=semantics, edges=edges)


@dataclass(frozen=True, eq=False)
class _MatFile:
    """Labeled file. MATLAB stores columns first, so that HDF5 shows its arrays transposed."""

    path: Path
    table: npt.NDArray[np.uint8]
    count: int
    camera: Intrinsics
    has_instances: bool

    @classmethod
    def open(cls, path: Path, table: npt.NDArray[np.uint8]) -> _MatFile:
        with _hdf5(path) as file, _damage(str(path)):
            for name, dims in (("images", 4), ("depths", 3), ("labels", 3)):
                if name not in file or file[name].ndim != dims:
                    raise M2HError(f"{path}: no array '{name}' of {dims} dimensions; expected {MAT_NAME}")
            images, depths, labels = (file[name].shape for name in ("images", "depths", "labels"))
            if images[1] != 3 or depths != labels or (images[0], *images[2:]) != depths:
                raise M2HError(f"{path}: images {images}, depths {depths} and labels {labels} do not fit together")
            count, width, height = depths
            camera = NYU_INTRINSICS.scaled(height, width, 480, 640)
            instances = "instances" in file and file["instances"].shape == labels
        return cls(path, table, int(count), camera, instances)

    def frame(self, number: int, name: str) -> Frame:
        """Read frame `number` (0-based)."""
        where = f"{self.path} frame {number + 1}"
        with _hdf5(self.path) as file, _damage(where):
            image = np.ascontiguousarray(file["images"][number].transpose(2, 1, 0)[..., ::-1])
            depth, labels = file["depths"][number].T, file["labels"][number].T
            parts = file["instances"][number].T if self.has_instances else np.zeros_like(labels)
        if image.dtype != np.uint8:
            raise M2HError(f"{where}: image is {image.dtype}, expected uint8")
        size = (int(image.shape[0]), int(image.shape[1]))
        depth = as_depth(depth, size, where)
        if labels.dtype.kind not in "iu":
            raise M2HError(f"{where}: labels are {labels.dtype}, expected integers")
        labels = labels.astype(np.int64)
        if labels.min() < 0 or labels.max() >= len(self.table):
            wrong = labels.max() if labels.max() >= len(self.table) else labels.min()
            raise M2HError(f"{where}: label {wrong}, but the class mapping ends at {len(self.table) - 1}")
        # Boundaries are those of the annotated objects (894 classes, instances), not of the 40 classes.
        segments = np.where(labels > 0, labels * 256 + parts, 0).astype(np.int32)
        window = max(3, round(7 * size[0] / 480) | 1)
        return Frame(
            image,
            name,
            depth=depth,
            normals=normals_from_depth(depth, self.camera, window),
            semantics=as_semantics(self.table[labels], size, where, len(NYU40_CLASSES)),
            edges=boundaries(segments),
            intrinsics=self.camera,
            derived=frozenset({"normals", "edges"}),
        )


@contextmanager
def _damage(where: str) -> Iterator[None]:
    """Convert the exceptions that h5py raises for a damaged file into an M2HError."""
    try:
        yield
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        damaged = f"{where}: cannot be read, the file is damaged or cut short"
        raise failure(error, f"cannot read {where}", damaged) from error


def _hdf5(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise missing_extra("h5py", "data", f"reading {path}", error=error) from None
    if not path.is_file():
        raise M2HError(f"{path}: the labeled NYUv2 file is missing")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        damaged = f"{path}: not an HDF5 file, or damaged; expected {MAT_NAME} as NYU distributes it"
        raise failure(error, f"cannot read {path}", damaged) from error


def _side_file(path: Path, key: str, what: str) -> npt.NDArray[np.int64]:
    if not path.is_file():
        raise M2HError(f"{path}: {what} is missing; put {path.name} beside the labeled file")
    numbers = read_numbers(path, key)
    if not numbers.size or not np.isfinite(numbers).all():
        raise M2HError(f"{path}: {what} '{key}' is empty or not numeric")
    return np.ravel(numbers).astype(np.int64)


def _read_split(path: Path, split: str) -> npt.NDArray[np.int64]:
    if split not in _SPLIT_KEYS:
        raise M2HError(f"{path}: no split '{split}'; there is train, val (or test) and all")
    return _side_file(path, _SPLIT_KEYS[split], "the list of splits") - 1


def _read_mapping(path: Path) -> npt.NDArray[np.uint8]:
    """Read the class (1..40) of each raw label; entry 0 is 0, unlabeled."""
    table = _side_file(path, "mapClass", "the class mapping")
    if table.min() < 1 or table.max() > len(NYU40_CLASSES):
        raise M2HError(f"{path}: maps to classes {table.min()}..{table.max()}, expected 1..{len(NYU40_CLASSES)}")
    return np.concatenate([[0], table]).astype(np.uint8)
