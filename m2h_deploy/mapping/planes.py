"""Depth images as planes: the surface between and around pixel centers, without interpolation across edges."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Intrinsics

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


class Seen(NamedTuple):
    """Surface on the rays of points; arrays are (N,)."""

    point: Indices
    """Which of the points."""
    pixel: Indices
    """Index into the flattened image."""
    depth: Floats
    """Depth of the point, meters."""
    distance: Floats
    """Signed distance from the plane of the pixel to the point, meters; above 0 in front of it."""


class DepthPlanes:
    """Depth image as one plane for each pixel.

    The inverse depth of a plane is linear in the pixel's coordinates. Its slope in each direction is the smaller one of
    the two sides, or 0 where their signs differ, so that no plane spans the edge of an object.
    """

    def __init__(self, depth: Floats, intrinsics: Intrinsics) -> None:
        self.intrinsics, self.shape = intrinsics, depth.shape
        with np.errstate(divide="ignore"):
            inverse = np.where(depth > 0, 1 / depth, 0).astype(np.float32)
        self.inverse = inverse.ravel()
        self.across, self.down = _slope(inverse.T).T.ravel(), _slope(inverse).ravel()

    def look_up(self, points: Floats, depth_range: tuple[float, float]) -> Seen:
        """Look up the surface on each point's ray.

        Args:
            points: float32 (3, N), camera axes, meters.
            depth_range: Points of another depth are left out.

        Returns:
            The points at pixels with known depth.
        """
        k = self.intrinsics
        height, width = self.shape
        x, y, z = points
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = x / z * np.float32(k.fx) + np.float32(k.cx), y / z * np.float32(k.fy) + np.float32(k.cy)
        valid = (z >= depth_range[0]) & (z <= depth_range[1])
        valid &= (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        index = np.flatnonzero(valid)
        u, v, z = u[index], v[index], z[index]
        column, row = np.rint(u), np.rint(v)
        pixels = row.astype(np.int64) * width + column.astype(np.int64)
        known = self.inverse[pixels] > 0
        index, pixels, z = index[known], pixels[known], z[known]
        u, v, column, row = u[known], v[known], column[known], row[known]
        across, down = self.across[pixels], self.down[pixels]
        inverse = self.inverse[pixels] + across * (u - column) + down * (v - row)
        a, b = across * np.float32(k.fx), down * np.float32(k.fy)
        c = inverse - a * ((u - np.float32(k.cx)) / np.float32(k.fx)) - b * ((v - np.float32(k.cy)) / np.float32(k.fy))
        return Seen(index, pixels, z, (1 - z * inverse) / np.sqrt(a * a + b * b + c * c))


def _slope(inverse: Floats) -> Floats:
    """Return the slope of inverse depth along the first axis: the smaller of both sides, 0 where their signs differ."""
    step = np.diff(inverse, axis=0)
    step[(inverse[1:] == 0) | (inverse[:-1] == 0)] = 0
    slope = np.zeros_like(inverse)
    before, after = step[:-1], step[1:]
    slope[1:-1] = np.where(before * after > 0, np.where(np.abs(before) < np.abs(after), before, after), 0)
    return slope
