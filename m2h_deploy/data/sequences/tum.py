"""Open a sequence in the layout of the TUM RGB-D benchmark, with optional labels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.conversion import Size, as_depth, as_edges, as_normals, as_semantics, decode_normals
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.camera import find_camera
from m2h_deploy.data.sequences.images import common_size, image_reader, read_depth
from m2h_deploy.data.sequences.lines import counted, data_lines
from m2h_deploy.data.sequences.planes import Planes, label_readers, moments
from m2h_deploy.data.sequences.settings import Poses, Settings
from m2h_deploy.data.sequences.trajectory import SAME_TIME
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_plane
from m2h_deploy.files.names import is_file

IMAGES, TRUTH, SURFACE = "rgb.txt", "groundtruth.txt", "surface.ply"

#: Depth is stored in 1/5000 m.
DEPTH_SCALE = 5000.0

#: Published intrinsics of the color cameras of freiburg1 to 3, for images of 640x480. Those of the first two also have
#: lens distortion, which is not removed: it moves pixels near the corners by a few pixels.
FREIBURG = {
    "1": Intrinsics(517.3, 516.5, 318.6, 255.3),
    "2": Intrinsics(520.9, 521.0, 325.1, 249.7),
    "3": Intrinsics(535.4, 539.2, 320.1, 247.6),
}


@dataclass(frozen=True, eq=False)
class TimedFiles:
    """Files of a list, in order of time."""

    times: npt.NDArray[np.float64]
    """(N,), seconds, strictly increasing."""
    files: tuple[Path, ...]
    skipped: tuple[str, ...] = ()
    """A line for each kind of file that is left out."""


def read_list(path: Path, *, existing: bool = True) -> TimedFiles:
    """Read a list of lines `timestamp file`, sorted by time; of files of the same time, the first is used.

    Args:
        path: The list; files are relative to its folder.
        existing: Leave out files that do not exist.

    Raises:
        M2HError: The list cannot be read, has another kind of line, or names a file outside of its folder.
    """
    entries = []
    for number, line in data_lines(path, "list"):
        time, name = _entry(line)
        if not np.isfinite(time) or not name:
            raise M2HError(f"{path}, line {number}: expected 'timestamp file'")
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
            raise M2HError(f"{path}, line {number}: {name!r} is not the name of a file in this folder")
        entries.append((time, path.parent / name))
    entries.sort(key=lambda entry: entry[0])
    missing = [str(file) for _, file in entries if existing and not is_file(file)]
    if missing:
        gone = set(missing)
        entries = [entry for entry in entries if str(entry[1]) not in gone]
    repeated: list[str] = []
    kept: list[tuple[float, Path]] = []
    for time, file in entries:
        if kept and time_name(time) == time_name(kept[-1][0]):
            repeated.append(str(file))
        else:
            kept.append((time, file))
    skipped = counted(f"{path}: listed files that do not exist are left out", missing)
    skipped += counted(f"{path}: files that repeat a time stamp are left out", repeated)
    return TimedFiles(np.array([time for time, _ in kept]), tuple(file for _, file in kept), skipped)


def time_name(time: float) -> str:
    """Return the name of the frame of a time stamp, as TUM names files."""
    return f"{time:.6f}"


def _entry(line: str) -> tuple[float, str]:
    """Split a line of a list; NaN and no name if it has another form."""
    time, _, name = line.replace(",", " ").replace("\t", " ").partition(" ")
    try:
        return float(time), name.strip()
    except ValueError:
        return float("nan"), ""


def associate(
    first: npt.NDArray[np.float64], second: npt.NDArray[np.float64], tolerance: float
) -> npt.NDArray[np.int64]:
    """Find the partner of each time in another list: the closest pairs first, and each time used once.

    Args:
        first: (N,), seconds, increasing.
        second: (M,), seconds, increasing.
        tolerance: Largest difference of a pair, seconds.

    Returns:
        (N,), index in `second`, -1 without a partner.
    """
    reach = max(tolerance, SAME_TIME)
    begin, end = np.searchsorted(second, first - reach), np.searchsorted(second, first + reach, "right")
    left = np.repeat(np.arange(len(first)), end - begin)
    right = np.arange(len(left)) - np.repeat(np.cumsum(end - begin) - (end - begin), end - begin) + begin[left]
    order = np.argsort(np.abs(first[left] - second[right]), kind="stable")
    partner, used = np.full(len(first), -1), np.zeros(len(second), bool)
    for one, other in zip(left[order], right[order], strict=True):
        if partner[one] < 0 and not used[other]:
            partner[one], used[other] = other, True
    return partner


def tum_images(folder: Path) -> list[tuple[str, Path]]:
    """Return the name and the file of each listed image, whether it exists or not, in order of time."""
    listed = read_list(folder / IMAGES, existing=False)
    return [(time_name(time), file) for time, file in zip(listed.times.tolist(), listed.files, strict=True)]


def open_tum(folder: Path, settings: Settings) -> Sequence:
    """Open a folder of the TUM RGB-D benchmark: rgb.txt, and if there are any, depth.txt and groundtruth.txt.

    Depth is 16-bit PNG in 1/5000 m, 0 where unknown. Each image gets the depth map closest in time; one without depth,
    labels or normals is wholly unknown there. The camera is that of camera.json, or the published one of freiburg1 to
    3 if the folder's name has one of these. Synthetic sequences also have lists of labels (class index + 1, 0
    unlabeled, NYUv2's 40 classes), normals and edges, and surface.ply.

    Raises:
        M2HError: A list is damaged, has no image, or the camera is unknown or does not fit.
    """
    images = read_list(folder / IMAGES)
    if not images.files:
        reason = images.skipped[0] if images.skipped else "the list is empty"
        raise M2HError(f"{folder / IMAGES}: no image: {reason}")
    size = common_size(images.files)
    named = re.search(r"freiburg([123])", folder.resolve().name)
    known = (FREIBURG[named[1]], (480, 640)) if named else None
    camera = find_camera(folder, size, settings.intrinsics, known)
    names = [time_name(time) for time in images.times]
    poses, about_poses = _poses(folder, settings, images, names)
    labels, about_labels = _labels_of(folder, images, names, settings.tolerance)
    surface = folder / SURFACE
    return Sequence(
        folder,
        moments(names, images.times.tolist(), poses, list(images.files), labels),
        image_reader(size),
        camera,
        size,
        label_readers(labels, size),
        images.skipped + about_poses + about_labels,
        surface if surface.is_file() else None,
        NYU40_CLASSES if any(planes.field == "semantics" for planes in labels) else (),
    )


def _poses(folder: Path, settings: Settings, images: TimedFiles, names: list[str]) -> tuple[Poses, tuple[str, ...]]:
    path = settings.poses or folder / TRUTH
    if settings.poses is None and not path.is_file():
        return [None] * len(names), (f"{path} is missing: the images have no pose",)
    return settings.poses_at(path, images.times.tolist(), names, folder)


def _labels_of(
    folder: Path, images: TimedFiles, names: list[str], tolerance: float
) -> tuple[list[Planes], tuple[str, ...]]:
    """Join each list of labels with the images; return them and lines about them."""
    labels, skipped = [], []
    for kind, (field, read) in _READ.items():
        path = folder / f"{kind}.txt"
        if not path.is_file():
            continue
        listed = read_list(path)
        found = associate(images.times, listed.times, tolerance)
        files = {name: listed.files[index] for name, index in zip(names, found, strict=True) if index >= 0}
        without = [name for name in names if name not in files]
        skipped += [*listed.skipped, *counted(f"{path}: images without {kind} within {tolerance:g} s", without)]
        if field == "edges" and without:  # edges have no value for unknown
            skipped.append(f"{path}: does not list all images: edges are not used")
        elif files:
            labels.append(Planes(field, files, read))
    return labels, tuple(skipped)


def _depth(file: Path, size: Size) -> npt.NDArray[np.float32]:
    return as_depth(read_depth(file, DEPTH_SCALE), size, str(file))


def _labels(file: Path, size: Size) -> npt.NDArray[np.uint8]:
    return as_semantics(read_plane(file, "labels"), size, str(file), len(NYU40_CLASSES))


def _normals(file: Path, size: Size) -> npt.NDArray[np.float32]:
    return as_normals(decode_normals(file), size, str(file))


def _edges(file: Path, size: Size) -> npt.NDArray[np.uint8]:
    return as_edges(read_plane(file, "edges"), size, str(file))


#: For each list, the field of a frame and how its files are read.
_READ: dict[str, tuple[str, Callable[[Path, Size], npt.NDArray]]] = {
    "depth": ("depth", _depth),
    "labels": ("semantics", _labels),
    "normals": ("normals", _normals),
    "edges": ("edges", _edges),
}
