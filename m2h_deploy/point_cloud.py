"""Turn a prediction into a colored, labeled point cloud, in the memory layout of PCL and of ROS's PointCloud2."""

from __future__ import annotations

import sys
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Prediction

#: Largest distance between two pixels that are taken.
MAX_DECIMATION = 1000

#: Bytes of blue, green and red in `rgb`, which is the number 0x00RRGGBB.
_COLOR_BYTES = (0, 1, 2) if sys.byteorder == "little" else (3, 2, 1)

_NORMALS = ("normal_x", "normal_y", "normal_z")


class Points(NamedTuple):
    """An organized cloud: one point for each pixel that was taken. The next projection overwrites it."""

    cloud: NDArray[np.void]
    """Structured, C-contiguous (H, W): x, y, z, rgb, and label and the normal if the cloud has them; see `PointCloud`.
    The position and the normal of a point without depth are NaN."""
    valid: NDArray[np.bool_]
    """(H, W), whether the point has depth."""

    def dense(self, select: NDArray[np.bool_] | None = None) -> NDArray[np.void]:
        """Return the points that have depth, (N,), row by row, in an array of their own.

        Args:
            select: bool (H, W), the points to keep; None keeps all.
        """
        keep = self.valid if select is None else np.logical_and(self.valid, select)
        return self.cloud[keep]


def point_dtype(*, labels: bool = True, normals: bool = False) -> np.dtype[np.void]:
    """Return the memory layout of a point: fields of four bytes, without padding.

    Fields: x, y, z (float32, meters), rgb (float32 whose bytes are the number 0x00RRGGBB, as in PCL), label (uint32),
    normal_x, normal_y, normal_z (float32).
    """
    fields: list[tuple[str, type]] = [(name, np.float32) for name in ("x", "y", "z", "rgb")]
    fields += [("label", np.uint32)] if labels else []
    fields += [(name, np.float32) for name in _NORMALS] if normals else []
    return np.dtype(fields)


class PointCloud:
    """Projects predictions of one camera into its optical frame: x right, y down, z forward, in meters.

    x = (u - cx) * z / fx and y = (v - cy) * z / fy; (u - cx) / fx is computed once, in float64, and rounded to float32.
    Normals are converted from the network's axes to those of the optical frame, so a floor's points up: (0, -1, 0).
    Not thread-safe: buffers are reused, so a projection allocates no memory while size and camera stay the same.
    """

    def __init__(self, *, decimation: int = 1, labels: bool = True, normals: bool = False, scale: float = 1.0) -> None:
        """Choose what a point has.

        Args:
            decimation: takes every n-th row and column, from the first one.
            labels: whether points have the class index; predictions must have semantics.
            normals: whether points have the surface normal; predictions must have normals.
            scale: factor on depth.

        Raises:
            M2HError: `decimation` is out of range.
        """
        if not 1 <= decimation <= MAX_DECIMATION:
            raise M2HError(f"point cloud: decimation is {decimation}: must be 1 to {MAX_DECIMATION}")
        self.dtype = point_dtype(labels=labels, normals=normals)
        self._labels, self._normals = labels, normals
        self.decimation, self._scale = decimation, np.float32(scale)
        self._for: Hashable = None

    def __call__(
        self,
        image: NDArray[np.uint8],
        prediction: Prediction,
        camera: Intrinsics,
        *,
        labels: NDArray[np.uint8] | None = None,
        outside: NDArray[np.bool_] | None = None,
    ) -> Points:
        """Project one frame.

        Args:
            image: uint8 (H, W, 3) BGR.
            prediction: of the image's size, with depth. Depth that is not finite or not above 0 is unknown.
            camera: of images of this size, pixels.
            labels: uint8 (H, W), written instead of the prediction's semantics.
            outside: bool (H, W), pixels whose depth is unknown; see `Rectification.outside`.

        Raises:
            M2HError: The prediction lacks a task, or has another size than the image.
        """
        labels = prediction.semantics if labels is None else labels
        depth = _checked("depth", prediction.depth, image)
        rows = slice(None, None, self.decimation)
        self._prepare(depth.shape, camera)
        cloud, valid = self._cloud, self._valid
        self._positions(depth[rows, rows], None if outside is None else outside[rows, rows])
        for channel, byte in enumerate(_COLOR_BYTES):
            np.copyto(self._colors[..., byte], image[rows, rows, channel])
        if self._labels:
            np.copyto(cloud["label"], _checked("semantics", labels, image)[rows, rows])
        if self._normals:
            normals = _checked("normals", prediction.normals, image)[rows, rows]
            for channel, name in enumerate(_NORMALS):
                np.negative(normals[..., channel], out=cloud[name])
                np.copyto(cloud[name], np.nan, where=self._invalid)
        return Points(cloud, valid)

    def _prepare(self, size: tuple[int, ...], camera: Intrinsics) -> None:
        if (size, camera) == self._for:
            return
        height, width = size
        x = (np.arange(width) - camera.cx) / camera.fx
        y = (np.arange(height) - camera.cy) / camera.fy
        self._x, self._y = x[:: self.decimation].astype(np.float32), y[:: self.decimation, None].astype(np.float32)
        taken = len(self._y), len(self._x)
        self._z = np.empty(taken, np.float32)
        self._valid, self._invalid = np.empty(taken, np.bool_), np.empty(taken, np.bool_)
        self._cloud: NDArray[np.void] = np.zeros(taken, self.dtype)
        self._colors = _color_bytes(self._cloud)
        self._for = (size, camera)

    def _positions(self, depth: NDArray[np.float32], outside: NDArray[np.bool_] | None) -> None:
        np.multiply(depth, self._scale, out=self._z)
        np.greater(self._z, 0, out=self._valid)
        np.isfinite(self._z, out=self._invalid)
        np.logical_and(self._valid, self._invalid, out=self._valid)
        if outside is not None:
            np.greater(self._valid, outside, out=self._valid)
        np.logical_not(self._valid, out=self._invalid)
        np.copyto(self._z, np.nan, where=self._invalid)
        np.multiply(self._z, self._x, out=self._cloud["x"])
        np.multiply(self._z, self._y, out=self._cloud["y"])
        np.copyto(self._cloud["z"], self._z)


def _checked(task: str, array: NDArray[Any] | None, image: NDArray[np.uint8]) -> NDArray[Any]:
    if array is None:
        raise M2HError(f"point cloud: the prediction has no {task}")
    if array.shape[:2] != image.shape[:2]:
        sizes = ["x".join(map(str, size.shape[1::-1])) for size in (array, image)]
        raise M2HError(f"point cloud: {task} is {sizes[0]} and the image {sizes[1]}: both must have the same size")
    return array


def positions(points: NDArray[np.void]) -> NDArray[np.float32]:
    """Return x, y, z of structured points as a view: float32 (..., 3), meters."""
    fields = points.view(np.float32).reshape(*points.shape, -1)
    return fields[..., :3]


def colors(points: NDArray[np.void]) -> NDArray[np.uint8]:
    """Return the red, green and blue of structured points: uint8 (..., 3)."""
    return _color_bytes(points)[..., _COLOR_BYTES[::-1]]


def _color_bytes(points: NDArray[np.void]) -> NDArray[np.uint8]:
    """Return the bytes of `rgb` as a view, uint8 (..., 4)."""
    return points.view(np.uint8).reshape(*points.shape, -1)[..., 12:16]
