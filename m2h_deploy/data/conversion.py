"""Check labels as stored in files, and convert them to the conventions of `Frame`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_pixels

Size = tuple[int, int]


def check_size(array: npt.NDArray[Any], size: Size, where: str, what: str) -> None:
    """Check that the first two dimensions of `array` are `size` (height, width).

    Args:
        array: (H, W, ...).
        size: expected (height, width), pixels.
        where: name of the file in the message.
        what: name of the label in the message.

    Raises:
        M2HError: the size differs.
    """
    if tuple(array.shape[:2]) != size:
        found = "x".join(str(n) for n in array.shape)
        raise M2HError(f"{where}: {what} is {found}, but its image is {size[0]}x{size[1]} (height x width)")


#: Range of the median depth of an indoor frame, in meters. In centimeters or millimeters it would be larger.
ROOM_MEDIAN = (0.05, 30.0)


def as_depth(
    array: npt.NDArray[Any], size: Size, where: str, median: tuple[float, float] = ROOM_MEDIAN
) -> npt.NDArray[np.float32]:
    """Check metric depth and convert it to float32.

    Args:
        array: floating-point (H, W) or (H, W, 1), meters, 0 where unknown.
        size: expected (height, width), pixels.
        where: name of the file in messages.
        median: range of the median depth, meters; see `check_median`.

    Returns:
        float32 (H, W), meters, 0 where unknown.

    Raises:
        M2HError: wrong size or type, NaN or infinity, a negative depth, or a unit other than meters.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise M2HError(f"{where}: depth is {array.dtype} {array.shape}, expected numbers (height, width)")
    check_meters(array, where)
    check_size(array, size, where, "depth")
    bad = int(np.count_nonzero(~np.isfinite(array)))
    if bad:
        raise M2HError(f"{where}: depth has {bad} NaN or infinite pixels; write 0 where it is unknown")
    if array.size and array.min() < 0:
        raise M2HError(f"{where}: depth has values down to {array.min():.3g} m; write 0 where it is unknown")
    check_median(array, where, median)
    return np.ascontiguousarray(array, np.float32)


def check_meters(array: npt.NDArray[Any], where: str) -> None:
    """Check that depth is floating-point.

    Args:
        array: depth of any shape.
        where: name of the file in the message.

    Raises:
        M2HError: depth has another type. Integers are in the sensor's unit, which is unknown.
    """
    if array.dtype.kind in "iu":
        raise M2HError(
            f"{where}: depth is {array.dtype}, expected floating-point meters; "
            "whole numbers are mostly millimeters: store them as float32, divided by 1000"
        )
    if array.dtype.kind != "f":
        raise M2HError(f"{where}: depth is {array.dtype}, expected floating-point meters")


def check_median(depth: npt.NDArray[Any], where: str, bounds: tuple[float, float]) -> None:
    """Check the unit of depth by the median of the known pixels (above 0).

    Args:
        depth: depth of any shape, 0 where unknown.
        where: name of the file in the message.
        bounds: smallest and largest median, meters.

    Raises:
        M2HError: the median is outside `bounds`, so that the unit is probably another one.
    """
    known = depth[depth > 0]
    middle = float(np.median(known.astype(np.float64))) if known.size else bounds[0]
    if not bounds[0] <= middle <= bounds[1]:
        raise M2HError(
            f"{where}: the median depth is {middle:.3g} m, expected {bounds[0]:g} to {bounds[1]:g} m: "
            "its unit is not the one of this layout"
        )


def as_semantics(array: npt.NDArray[Any], size: Size, where: str, classes: int) -> npt.NDArray[np.uint8]:
    """Convert labels of a file to labels in memory.

    Args:
        array: integers (H, W), 1..classes, 0 where unlabeled.
        size: expected (height, width), pixels.
        where: name of the file in messages.
        classes: number of classes.

    Returns:
        uint8 (H, W), 0..classes - 1, 255 where unlabeled.

    Raises:
        M2HError: wrong size or type, or a label out of range.
    """
    check_size(array, size, where, "segmentation")
    if array.dtype.kind not in "iu":
        raise M2HError(f"{where}: segmentation is {array.dtype}, expected integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > classes:
        wrong = high if high > classes else low
        raise M2HError(f"{where}: label {wrong}, expected 1..{classes} or 0 for unlabeled")
    return np.where(array == 0, IGNORE_LABEL, array.astype(np.int32) - 1).astype(np.uint8)


def as_normals(array: npt.NDArray[np.floating], size: Size, where: str) -> npt.NDArray[np.float32]:
    """Check normals and normalize their length.

    Args:
        array: floating-point (H, W, 3), in the convention of `m2h_deploy.data.frame`. Vectors that are far from unit
            length are unknown.
        size: expected (height, width), pixels.
        where: name of the file in messages.

    Returns:
        float32 (H, W, 3), unit vectors, (0, 0, 0) where unknown.

    Raises:
        M2HError: wrong size or type, NaN or infinity, or no vector of about unit length.
    """
    if array.ndim != 3 or array.shape[2] != 3:
        raise M2HError(f"{where}: normals are {array.shape}, expected (height, width, 3)")
    check_size(array, size, where, "normals")
    if array.dtype.kind != "f":
        raise M2HError(f"{where}: normals are {array.dtype}, expected floating-point unit vectors")
    vectors = array.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise M2HError(f"{where}: normals have NaN or infinity; write (0, 0, 0) where they are unknown")
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    # Eight bits cannot store a zero vector, and black pixels decode to (-1, -1, -1): neither is a normal.
    known = (length > 0.5) & (length < 1.5)
    black = (vectors == -1).all(axis=-1, keepdims=True)
    if not known.any() and ((length >= 1.5) & ~black).any():
        raise M2HError(f"{where}: no normal is a unit vector: the longest has length {length.max():.3g}")
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=known).astype(np.float32)


def as_edges(array: npt.NDArray[Any], size: Size, where: str) -> npt.NDArray[np.uint8]:
    """Convert boundaries of a file to 0 and 1; half of the range and above is a boundary.

    Args:
        array: (H, W) or (H, W, 1), 0..255 or 0..1.
        size: expected (height, width), pixels.
        where: name of the file in messages.

    Returns:
        uint8 (H, W), 1 on a boundary, else 0.

    Raises:
        M2HError: wrong size, more than one channel, or another range, such as that of labels.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise M2HError(f"{where}: edges are {array.dtype} {array.shape}, expected numbers (height, width)")
    check_size(array, size, where, "edges")
    low, top = float(array.min()), float(array.max())
    if not (low >= 0 and (top <= 1 or top == 255)):  # also true for NaN
        raise M2HError(f"{where}: edges are {low:g} to {top:g}, expected 0 and 1, or 0 and 255")
    return (array > (127 if top > 1 else 0.5)).astype(np.uint8)


def decode_normals(path: Path) -> npt.NDArray[np.float32]:
    """Decode normals from an RGB image that stores (n + 1) / 2 * 255, x in red, y in green, z in blue.

    Returns:
        float32 (H, W, 3), -1..1, not normalized.
    """
    colors = read_pixels(path, cv2.IMREAD_COLOR, "normals")
    return colors[..., ::-1].astype(np.float32) * (2.0 / 255.0) - 1.0


def encode_normals(normals: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Encode normals (H, W, 3) as the BGR image that `decode_normals` reads."""
    return np.rint((normals[..., ::-1] + 1.0) * 127.5).astype(np.uint8)


def encode_semantics(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Encode labels in memory (0-based, 255 unlabeled) as stored labels (1-based, 0 unlabeled)."""
    return np.where(labels == IGNORE_LABEL, 0, labels + 1).astype(np.uint8)
