"""Open a scene of ScanNet, exported by its SensReader."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.conversion import Size, as_depth, as_semantics
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.camera import check_camera
from m2h_deploy.data.sequences.images import common_size, read_depth, shape_of
from m2h_deploy.data.sequences.lines import data_lines
from m2h_deploy.data.sequences.numbered import Numbered, open_numbered, read_matrix
from m2h_deploy.data.sequences.planes import Planes
from m2h_deploy.data.sequences.settings import Settings
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import IMAGE_SUFFIXES, read_plane
from m2h_deploy.files.names import is_file, is_folder

MESH, TABLE = "_vh_clean_2.ply", "scannetv2-labels.combined.tsv"


def scannet_images(folder: Path) -> list[tuple[str, Path]]:
    """Return the name and the file of each color image, in the order of their numbers."""
    files = sorted(file for file in (folder / "color").iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    numbered = {int(file.stem): file for file in files if file.stem.isdecimal()}
    return [(f"{number:06d}", numbered[number]) for number in sorted(numbered)]


def open_scannet(folder: Path, settings: Settings) -> Sequence:
    """Open an exported scene: color/0.jpg, depth/0.png, pose/0.txt, intrinsic/intrinsic_color.txt and _depth.txt.

    Depth is 16-bit PNG in millimeters, in a camera of its own. It is brought to the color image's pixels, each of which
    gets the depth at the same viewing ray, or the nearest to it, because predictions and labels are at the size of the
    color image. Times follow from the numbers, at 30 images per second. Where tracking was lost, the pose is infinite.
    The surface is the scene's mesh NAME_vh_clean_2.ply, in this folder or next to it. Labels, in label-filt/ or label/,
    need scannetv2-labels.combined.tsv, in this folder or up to three above it, which states their NYUv2 classes.

    Raises:
        M2HError: The images cannot be read, or a camera is missing or does not fit.
    """
    images = scannet_images(folder)
    if not images:
        raise M2HError(f"{folder / 'color'}: no image named by its number, such as 0.jpg")
    size = common_size(file for _, file in images)
    place = folder / "intrinsic"
    if settings.intrinsics is not None:
        camera = check_camera(settings.intrinsics, size, "the given intrinsics")
    else:
        camera = check_camera(_read_camera(place / "intrinsic_color.txt"), size, str(place / "intrinsic_color.txt"))
    frames = [Numbered(int(name), name, file, folder / "pose" / f"{file.stem}.txt") for name, file in images]

    def files(kind: str) -> dict[str, Path]:
        return {name: folder / kind / f"{file.stem}.png" for name, file in images}

    labels: list[Planes] = []
    skipped: tuple[str, ...] = ()
    if is_folder(folder / "depth"):
        sensor = _read_camera(place / "intrinsic_depth.txt")
        labels.append(Planes("depth", files("depth"), partial(_depth, sensor=sensor, camera=camera)))
    annotated = next((kind for kind in ("label-filt", "label") if is_folder(folder / kind)), None)
    if annotated is not None:
        table = _class_table(folder)
        if table is not None:
            labels.append(Planes("semantics", files(annotated), partial(_semantics, table=table)))
        else:
            skipped = (f"{folder / annotated}: not used without {TABLE}, which belongs in this folder or above it",)
    sequence = open_numbered(folder, frames, settings, camera, size, labels)
    return replace(sequence, skipped=sequence.skipped + skipped, surface=_mesh(folder))


def _depth(file: Path, size: Size, sensor: Intrinsics, camera: Intrinsics) -> npt.NDArray[np.float32]:
    stored = read_depth(file, 1000.0)
    height, width = shape_of(stored)
    if not (width / 3 < sensor.cx < 2 * width / 3 and height / 3 < sensor.cy < 2 * height / 3):
        raise M2HError(f"{file}: depth is {height}x{width} (height x width), which intrinsic_depth.txt does not fit")
    return as_depth(registered(stored, sensor, camera, size), size, str(file))


def _semantics(file: Path, size: Size, table: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    stored = read_plane(file, "labels")
    if stored.max() >= len(table):
        raise M2HError(f"{file}: label {stored.max()}, but {TABLE} ends at {len(table) - 1}")
    return as_semantics(table[stored], size, str(file), len(NYU40_CLASSES))


def _class_table(folder: Path) -> npt.NDArray[np.uint8] | None:
    """Read the NYUv2 class (1..40, 0 none) of each of ScanNet's labels; None if the file is not found.

    Raises:
        M2HError: The file is damaged.
    """
    folder = folder.resolve()
    file = next((place / TABLE for place in (folder, *folder.parents[:3]) if is_file(place / TABLE)), None)
    if file is None:
        return None
    rows = [line.split("\t") for _, line in data_lines(file, "list of labels")]
    try:
        number, nyu = (rows[0].index(column) for column in ("id", "nyu40id"))
        # The last columns may be empty.
        pairs = [(int(row[number]), int("".join(row[nyu : nyu + 1]) or 0)) for row in rows[1:]]
    except (ValueError, IndexError):
        pairs = [(-1, 0)]
    if not all(0 <= label <= np.iinfo(np.uint16).max for label, _ in pairs):  # as label images have them
        raise M2HError(f"{file}: expected columns 'id' and 'nyu40id' of numbers, separated by tabs")
    table = np.zeros(1 + max((label for label, _ in pairs), default=0), np.uint8)
    for label, nyu_class in pairs:
        table[label] = nyu_class if 1 <= nyu_class <= len(NYU40_CLASSES) else 0
    return table


def registered(
    depth: npt.NDArray[np.float32], sensor: Intrinsics, camera: Intrinsics, size: Size
) -> npt.NDArray[np.float32]:
    """Bring depth to the pixels of a color camera at the same place, by nearest neighbor.

    Args:
        depth: (h, w), meters, 0 where unknown.
        sensor: The camera of `depth`.
        camera: The color camera.
        size: Height and width of the color image.

    Returns:
        (H, W), meters, 0 where unknown or outside of `depth`.
    """
    x = np.rint((np.arange(size[1]) - camera.cx) / camera.fx * sensor.fx + sensor.cx).astype(np.int64)
    y = np.rint((np.arange(size[0]) - camera.cy) / camera.fy * sensor.fy + sensor.cy).astype(np.int64)
    inside_x, inside_y = (x >= 0) & (x < depth.shape[1]), (y >= 0) & (y < depth.shape[0])
    result = np.zeros(size, np.float32)
    result[np.ix_(inside_y, inside_x)] = depth[np.ix_(y[inside_y], x[inside_x])]
    return result


def _read_camera(file: Path) -> Intrinsics:
    matrix = read_matrix(file)
    if matrix is None or not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise M2HError(f"{file}: expected the camera's matrix, 4x4 numbers, as ScanNet's SensReader exports it")
    return Intrinsics(*(float(matrix[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2))))


def _mesh(folder: Path) -> Path | None:
    """Find the mesh of the scene, in the exported folder or beside it."""
    folder = folder.resolve()
    candidates = [
        *sorted(folder.glob(f"*{MESH}")),
        folder.parent / f"{folder.name}{MESH}",
        folder.parent / f"{folder.parent.name}{MESH}",
    ]
    return next((file for file in candidates if file.is_file()), None)
