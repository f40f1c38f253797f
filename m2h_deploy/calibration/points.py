"""Samples from single points with known distance: a table of image, u, v, meters."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.calibration.samples import FEWEST_UNITS, SampleList, Samples
from m2h_deploy.causes import failure
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_image
from m2h_deploy.files.names import is_file
from m2h_deploy.runtime.runtime import Runtime

_COLUMNS = ("image", "u", "v", "meters")
#: The unit, in American or British spelling.
_UNIT = re.compile(r"met(er|re)s?")

#: Most points that are read, in case another file was given.
_MOST = 100_000


@dataclass(frozen=True)
class Point:
    """A pixel with known distance."""

    image: Path
    u: float
    """Pixels to the right, from the center of the first pixel."""
    v: float
    """Pixels down."""
    meters: float
    line: int
    """Line of the table, for messages."""


def read_points(path: str | os.PathLike[str]) -> list[Point]:
    """Read a CSV table with the columns image, u, v, meters; images are relative to the table's folder.

    Raises:
        M2HError: The file or a line of it is invalid, or it has fewer than three points; names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            points = [_point(path, *row) for row in _rows(path, csv.DictReader(file, skipinitialspace=True))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise failure(error, f"cannot read {path}", f"{path} is not a CSV table of {', '.join(_COLUMNS)}") from None
    if len(points) < FEWEST_UNITS:
        count = "1 point is" if len(points) == 1 else f"{len(points)} points are"
        raise M2HError(f"{path}: {count} not enough: give at least {FEWEST_UNITS}, better five or more")
    return points


def _rows(path: Path, table: csv.DictReader[str]) -> Iterable[tuple[int, dict[str, str]]]:
    names = [_UNIT.sub("meters", str(field).strip().lower()) for field in table.fieldnames or ()]
    if missing := [name for name in _COLUMNS if name not in names]:
        raise M2HError(
            f"{path}: the first line lacks {', '.join(missing)}: it must name the columns image,u,v,meters, with commas"
        )
    table.fieldnames = names
    for count, row in enumerate(table):
        if count == _MOST:
            raise M2HError(f"{path}: more than {_MOST} points: give RGB-D frames with --data instead")
        yield table.line_num, {str(name): str(value or "").strip() for name, value in row.items()}


def _point(path: Path, line: int, row: dict[str, str]) -> Point:
    numbers = {}
    for name in _COLUMNS[1:]:
        try:
            numbers[name] = float(row[name])
        except ValueError:
            raise M2HError(f"{path}: line {line}: {name} is '{row[name]:.40}', not a number") from None
    if not all(map(math.isfinite, numbers.values())) or numbers["meters"] <= 0:
        raise M2HError(f"{path}: line {line}: {numbers['meters']:g} meters: distances must be above 0")
    if not row["image"]:
        raise M2HError(f"{path}: line {line}: names no image")
    image = path.parent / row["image"]
    if not is_file(image):
        raise M2HError(f"{path}: line {line}: there is no image {image}")
    return Point(image, **numbers, line=line)


def samples_of_points(
    runtime: Runtime,
    points: list[Point],
    table: str,
    *,
    camera: Callable[[int, int], Intrinsics] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Predict the images of points and pair the depth there with the known distance.

    The points of an image are a unit if they lie in at least three images; else every point is one.

    Args:
        runtime: Runtime without calibration.
        points: The points.
        table: Name of their table, for errors.
        camera: Makes the camera for images of a height and width: then the distances are those from the camera to the
            point, as a tape measures them, and are converted; None for distances along the optical axis.
        progress: Called with the numbers of finished images and of all.

    Raises:
        M2HError: An image cannot be read or predicted, or a point lies outside its image.
    """
    images = list(dict.fromkeys(point.image for point in points))
    by_image = len(images) >= FEWEST_UNITS
    found = SampleList(runtime.manifest.depth_range)
    number = 0
    for done, path in enumerate(images):
        image = read_image(path)
        height, width = image.shape[:2]
        own = [point for point in points if point.image == path]
        for point in own:
            if not (-0.5 <= point.u <= width - 0.5 and -0.5 <= point.v <= height - 0.5):
                raise M2HError(
                    f"{table}: line {point.line}: the point {point.u:g}, {point.v:g} is outside of {path.name} "
                    f"({width} x {height} pixels)"
                )
        depth = runtime(image).depth
        assert depth is not None
        places = np.array([(point.u, point.v) for point in own])
        measured = np.array([point.meters for point in own])
        if camera is not None:
            measured = measured / _ray_lengths(camera(height, width), places)
        for value, known in zip(_values_at(depth, places), measured, strict=True):
            found.add(value[None], known[None], done if by_image else number)
            number += 1
        if progress is not None:
            progress(done + 1, len(images))
    return found.samples(len(images), f"{table}: points" if not by_image else f"{table}: images with points")


def _values_at(depth: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate depth bilinearly at places (N, 2) in pixels."""
    x, y = (np.ascontiguousarray(places[None, :, axis], np.float32) for axis in (0, 1))
    values = cv2.remap(depth, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values[0], np.float64)


def _ray_lengths(camera: Intrinsics, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the length of the viewing rays with z = 1 at places (N, 2) in pixels."""
    x, y = (places[:, 0] - camera.cx) / camera.fx, (places[:, 1] - camera.cy) / camera.fy
    return np.asarray(np.sqrt(x * x + y * y + 1))
