"""The camera of a sequence: its intrinsics from an option, camera.json or the data set, checked against the images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from m2h_deploy.data.conversion import Size
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_deploy.files.text import read_json

CAMERA_NAME = "camera.json"

#: Range of a plausible focal length, in widths of the image.
_FOCAL = (0.2, 10.0)
#: Largest relative difference of two aspect ratios that are the same.
_ASPECT = 0.01


def find_camera(
    folder: Path, size: Size, given: Intrinsics | None, known: tuple[Intrinsics, Size] | None = None
) -> Intrinsics:
    """Return the camera of images of `size`.

    Args:
        folder: May have camera.json: `width`, `height`, `fx`, `fy`, `cx`, `cy` in pixels.
        size: Height and width of the images, pixels.
        given: The user's intrinsics for images of this size; they replace all others.
        known: The data set's published intrinsics and the size of the images that they are for.

    Raises:
        M2HError: The intrinsics are unknown or do not fit the images.
    """
    if given is not None:
        return check_camera(given, size, "the given intrinsics")
    file = folder / CAMERA_NAME
    if file.is_file():
        known = read_camera(file)
    if known is None:
        raise M2HError(
            f"{folder}: the camera's intrinsics are unknown: write {CAMERA_NAME} in this folder, with width, height, "
            "fx, fy, cx, cy in pixels, or give intrinsics fx,fy,cx,cy (--intrinsics)"
        )
    where = str(file) if file.is_file() else f"the published intrinsics of {folder}"
    camera, (height, width) = known
    if abs(size[1] * height / (size[0] * width) - 1) > _ASPECT:
        raise M2HError(
            f"{where}: for images of {width}x{height} (width x height), but these are {size[1]}x{size[0]}: another "
            "aspect ratio; give the intrinsics of these images"
        )
    return check_camera(camera.scaled(*size, height, width), size, where)


def read_camera(file: Path) -> tuple[Intrinsics, Size]:
    """Read a camera.json file: the intrinsics, and the height and width of the images that they are for."""
    content = read_json(file, "camera")
    names = ("fx", "fy", "cx", "cy", "width", "height")
    values: list[Any] = [content.get(name) for name in names] if isinstance(content, dict) else []
    if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise M2HError(f"{file}: expected the numbers {', '.join(names)}")
    fx, fy, cx, cy, width, height = map(float, values)
    if width < 1 or height < 1:
        raise M2HError(f"{file}: width {width:g} and height {height:g} are not the size of an image")
    return Intrinsics(fx, fy, cx, cy), (int(height), int(width))


def check_camera(camera: Intrinsics, size: Size, where: str) -> Intrinsics:
    """Return `camera` if it is plausible for images of `size`, (height, width). Raises M2HError otherwise."""
    height, width = size
    for name in ("fx", "fy"):
        value = getattr(camera, name)
        if not _FOCAL[0] * width <= value <= _FOCAL[1] * width:  # also true for NaN
            raise M2HError(
                f"{where}: {name} is {value:g} pixels, expected {_FOCAL[0] * width:g} to {_FOCAL[1] * width:g} for "
                f"images of {width}x{height}; intrinsics are in pixels of these images"
            )
    for name, side in (("cx", width), ("cy", height)):
        value = getattr(camera, name)
        if not -0.5 <= value <= side - 0.5:
            raise M2HError(
                f"{where}: {name} is {value:g}: the principal point is outside of images of {width}x{height}; "
                "intrinsics are in pixels of these images"
            )
    return camera
