"""Free floor of a room: where a person or a robot that carries a camera can walk, and the way between two places."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.geometry import CYLINDER, ELLIPSOID, Solid
from m2h_deploy.data.rooms.layout import Room

Array = npt.NDArray[np.floating]

#: Side of a grid cell, and the distance between the points of a way, meters.
_CELL = 0.05
#: What is lower can be stepped on.
_STEP_HEIGHT = 0.05
#: Free floor that is enough for a walk, square meters.
_ENOUGH = 1.5
_NEIGHBORS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)]


class FreeFloor:
    """Part of the floor on which a camera at `height` stays at least `clearance` meters away from everything.

    Furniture below the camera counts, too. In a room without enough free floor, the camera may pass over furniture
    that is more than `clearance` lower.
    """

    def __init__(self, room: Room, height: float, clearance: float) -> None:
        self._size = room.size[:2]
        self._needed = clearance
        shape = np.maximum(np.floor(self._size / _CELL).astype(int), 1)
        centers = (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * _CELL
        for lowest in (_STEP_HEIGHT, height - clearance):
            self._set_obstacles(room.solids, lowest, height + clearance)
            self._distance = self.clearance(centers)
            self.cells = _largest_area(self._distance >= clearance)
            if len(self.cells) * _CELL**2 >= _ENOUGH:
                break
        if not len(self.cells):  # no place is far enough from everything: the best one
            self.cells = np.array([np.unravel_index(self._distance.argmax(), self._distance.shape)])
        self._free = np.zeros(self._distance.shape, bool)
        self._free[tuple(self.cells.T)] = True

    def _set_obstacles(self, solids: list[Solid], low: float, high: float) -> None:
        """Store the footprints of the solids that reach into the heights from `low` to `high`."""
        found = []
        for solid in solids:
            upright = abs(solid.rotation[2, 2]) > 1 - 1e-9
            extent = _extent(solid)
            if solid.center[2] + extent[2] > low and solid.center[2] - extent[2] < high:
                axes = solid.rotation[:2, :2] if upright else np.eye(2)
                half = solid.half[:2] if upright else extent[:2]
                found.append((solid.center[:2], axes, half))
        self._centers = np.array([center for center, _, _ in found]).reshape(-1, 2)
        self._axes = np.array([axes for _, axes, _ in found]).reshape(-1, 2, 2)
        self._halves = np.array([half for _, _, half in found]).reshape(-1, 2)

    def clearance(self, points: Array) -> Array:
        """Compute the horizontal distance (...) of points (..., 2) to the nearest wall or footprint, meters."""
        walls = np.minimum(points, self._size - points).min(axis=-1)
        local = np.einsum("...fi,fij->...fj", points[..., None, :] - self._centers, self._axes)
        beyond = np.maximum(np.abs(local) - self._halves, 0.0)
        nearest: Array = np.hypot(beyond[..., 0], beyond[..., 1]).min(axis=-1, initial=np.inf)
        return np.minimum(walls, nearest)

    def place(self, cell: npt.NDArray[np.integer]) -> Array:
        """Return the middle of a grid cell, (2,), meters."""
        middle: Array = (cell + 0.5) * _CELL
        return middle

    def way(self, start: npt.NDArray[np.integer], goal: npt.NDArray[np.integer]) -> Array:
        """Find a short, smooth way between two free cells that prefers the middle of the free floor.

        Returns:
            Points (N, 2), about 5 cm apart, meters, from the middle of `start` to the middle of `goal`.
        """
        cost = 1.0 + 0.1 / np.maximum(self._distance - self._needed + 0.1, 0.02)
        left = np.full(np.add(self._free.shape, 2), np.inf)
        inner = left[1:-1, 1:-1]
        inner[tuple(goal)] = 0.0
        while True:
            steps = [np.hypot(x, y) * cost + _shifted(left, x, y) for x, y in _NEIGHBORS]
            shorter = np.where(self._free, np.minimum(np.min(steps, axis=0), inner), np.inf)
            if np.array_equal(shorter, inner):
                break
            inner[:] = shorter
        cells = [np.asarray(start)]
        while not np.array_equal(cells[-1], goal):
            around = [cells[-1] + step for step in _NEIGHBORS]
            lengths = [np.hypot(*step) * cost[tuple(cells[-1])] + left[tuple(cell + 1)]
                       for step, cell in zip(_NEIGHBORS, around, strict=True)]  # fmt: skip
            cells.append(around[int(np.argmin(lengths))])
        return self._relaxed(self.place(np.array(cells)))

    def _relaxed(self, line: Array) -> Array:
        """Straighten a line of points as far as the clearance allows; its ends stay."""
        line = line.copy()
        for _ in range(80):
            middle = (line[:-2] + line[2:]) / 2
            allowed = self.clearance(middle) >= self._needed
            line[1:-1][allowed] = middle[allowed]
        return line


def _extent(solid: Solid) -> Array:
    """Compute the half size (3,) of a solid's bounding box along the axes of the room."""
    if solid.kind == ELLIPSOID:
        return np.asarray(np.sqrt((solid.rotation * solid.half) ** 2 @ np.ones(3)))
    if solid.kind == CYLINDER:
        disk = np.sqrt((solid.rotation[:, :2] * solid.half[:2]) ** 2 @ np.ones(2))
        return np.asarray(disk + np.abs(solid.rotation[:, 2]) * solid.half[2])
    return np.asarray(np.abs(solid.rotation) @ solid.half)


def _largest_area(free: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Return the cells (N, 2) of the largest connected area."""
    count, numbers = cv2.connectedComponents(free.astype(np.uint8), connectivity=4)
    if count < 2:
        return np.zeros((0, 2), np.intp)
    return np.argwhere(numbers == 1 + np.bincount(numbers[free], minlength=count)[1:].argmax())


def _shifted(padded: Array, x: int, y: int) -> Array:
    """Return the inner part of `padded` with the values of the neighbors at (x, y)."""
    height, width = padded.shape
    return padded[1 + x : height - 1 + x, 1 + y : width - 1 + y]
