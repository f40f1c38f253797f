"""Warp: move a depth map to another camera pose, with a z-buffer."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics, Pose

Array = NDArray[np.float32]

#: Points nearer to the camera plane than this, in meters, are not projected.
_NEAREST = 1e-3

#: Pixels whose depths differ by less than this share show one surface.
_SAME = np.float32(0.05)


class Warped(NamedTuple):
    """A depth map as another camera sees it."""

    depth: Array
    """(H, W) meters, 0 where nothing was projected."""
    source: NDArray[np.int64]
    """(H, W) flat index of the pixel of the original that is seen; valid only where depth is above 0."""


def motion_between(before: Pose, after: Pose) -> Pose:
    """Return the transform from the camera at pose `before` to the camera at pose `after`, float64 (4, 4)."""
    moved: Pose = np.linalg.inv(after) @ before
    return moved


def close_cracks(warped: Warped) -> Warped:
    """Fill pixels between two that show one surface, left and right or above and below.

    A surface that comes nearer is stretched, and leaves pixels empty that it covers.
    """
    depth, source = warped.depth.copy(), warped.source.copy()
    for axis in (1, 0):
        before, middle, after = (_part(warped.depth, axis, start) for start in range(3))
        crack = (middle == 0) & (before > 0) & (np.abs(after - before) < _SAME * before)
        _part(depth, axis, 1)[crack] = before[crack]
        _part(source, axis, 1)[crack] = _part(warped.source, axis, 0)[crack]
    return Warped(depth, source)


def _part(array: NDArray[Any], axis: int, start: int) -> NDArray[Any]:
    """Return all but two rows (axis 0) or columns (axis 1), from `start` on."""
    stop = array.shape[axis] - 2 + start
    return array[start:stop] if axis == 0 else array[:, start:stop]


class Warp:
    """Warps between poses of one camera. Not thread-safe: buffers are reused."""

    def __init__(self, intrinsics: Intrinsics, height: int, width: int) -> None:
        """Prepare the viewing rays.

        Args:
            intrinsics: of images of `height` x `width`, pixels.
            height: pixels.
            width: pixels.
        """
        self.intrinsics, self.size = intrinsics, (height, width)
        rays = intrinsics.rays(height, width).reshape(-1, 3).T
        self._rays = np.ascontiguousarray(rays, np.float32)
        self._indices = np.arange(height * width, dtype=np.uint64)
        self._keys = np.empty(height * width + 1, np.uint64)

    def forward(self, depth: Array, motion: Pose) -> Warped:
        """Project every pixel into the other camera; the nearest of those that meet in a pixel is kept.

        Args:
            depth: float32 (H, W), meters, 0 where unknown.
            motion: from this camera to the other one, float64 (4, 4).
        """
        height, width = self.size
        flat = np.ascontiguousarray(depth, np.float32).reshape(-1)
        x, y, z = self._move(flat, motion)
        good = (flat > 0) & (z > _NEAREST)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            columns = np.rint(x / z * self.intrinsics.fx + self.intrinsics.cx)
            rows = np.rint(y / z * self.intrinsics.fy + self.intrinsics.cy)
            good &= (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
            # All the others meet in one pixel behind the image.
            target = np.where(good, rows * width + columns, height * width).astype(np.int64)
        # Bits of positive floats are in the order of the floats: one minimum finds the nearest point and its pixel.
        key = (np.where(good, z, 0).view(np.uint32).astype(np.uint64) << np.uint64(32)) | self._indices
        keys = self._keys
        keys.fill(np.iinfo(np.uint64).max)
        np.minimum.at(keys, target, key)
        nearest = keys[:-1]
        seen = nearest != np.iinfo(np.uint64).max
        warped = np.where(seen, (nearest >> np.uint64(32)).astype(np.uint32).view(np.float32), np.float32(0))
        source = (nearest & np.uint64(0xFFFFFFFF)).astype(np.int64) * seen
        return Warped(warped.reshape(height, width), source.reshape(height, width))

    def _move(self, depth: Array, motion: Pose) -> Array:
        """Return the points of a flat depth map in the other camera, (3, N)."""
        rotation, shift = motion[:3, :3].astype(np.float32), motion[:3, 3].astype(np.float32)
        points: Array = rotation @ self._rays
        points *= depth
        points += shift[:, None]
        return points
