"""Triangle mesh of a room's exact surfaces: its faces seen from inside, its solids seen from outside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.rooms.geometry import BOX, CYLINDER, Solid
from m2h_deploy.data.rooms.layout import Room
from m2h_deploy.data.rooms.render import FACE_CLASSES

Array = npt.NDArray[np.floating]
Triangles = npt.NDArray[np.int32]

#: Largest distance between a curved surface and its triangles, meters.
_TOLERANCE = 0.0005
#: Corners of the box -1..1 in binary order of (x, y, z), and its faces x=-1, x=1, y=-1, ..., seen from outside.
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_FACES = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])


def room_mesh(room: Room) -> tuple[Array, Triangles, npt.NDArray[np.uint8]]:
    """Make the mesh of a room.

    Returns:
        Vertices float64 (N, 3) in meters, triangles int32 (M, 3), counterclockwise seen from the visible side, and the
        class index of each vertex, uint8 (N,).
    """
    vertices: list[Array] = []
    triangles: list[Triangles] = []
    labels: list[npt.NDArray[np.uint8]] = []
    parts = [(_CORNERS[face] * room.size / 2 + room.size / 2, _fan(4)[:, ::-1], label)
             for face, label in zip(_FACES, FACE_CLASSES, strict=True)]  # fmt: skip
    for solid in room.solids:
        unit, faces = _unit_mesh(solid)
        parts.append((unit * solid.half @ solid.rotation.T + solid.center, faces, solid.label))
    count = 0
    for points, faces, label in parts:
        vertices.append(points)
        triangles.append((faces + count).astype(np.int32))
        labels.append(np.full(len(points), label, np.uint8))
        count += len(points)
    return np.concatenate(vertices), np.concatenate(triangles), np.concatenate(labels)


def _unit_mesh(solid: Solid) -> tuple[Array, Triangles]:
    """Make vertices and triangles of a solid of half size 1, so fine that the scaled solid is within the tolerance."""
    if solid.kind == BOX:
        return _CORNERS, np.concatenate([face[_fan(4)] for face in _FACES])
    if solid.kind == CYLINDER:
        step = 2 * np.arccos(1 - _TOLERANCE / max(solid.half[:2].max(), 2 * _TOLERANCE))
        profile = np.array([[0.0, -1.0], [1.0, -1.0], [1.0, 1.0], [0.0, 1.0]])
    else:
        # A triangle's circumscribed circle spans the diagonal of a cell, whose sides are one step.
        step = np.sqrt(2) * np.arccos(1 - _TOLERANCE / max(solid.half.max(), 2 * _TOLERANCE))
        angles = np.linspace(-np.pi / 2, np.pi / 2, int(np.ceil(np.pi / step)) + 1)
        profile = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return _turned(profile, max(3, int(np.ceil(2 * np.pi / step))))


def _turned(profile: Array, count: int) -> tuple[Array, Triangles]:
    """Turn a profile of (radius, z), from the lowest point of the z axis to its highest, about the z axis."""
    angles = np.arange(count) * 2 * np.pi / count
    rings = [np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(count, z)], axis=-1)
             for radius, z in profile[1:-1]]  # fmt: skip
    ends = np.array([[0.0, 0.0, profile[0, 1]], [0.0, 0.0, profile[-1, 1]]])
    here, after = np.arange(count), (np.arange(count) + 1) % count
    last = (len(rings) - 1) * count
    low = np.full(count, len(rings) * count)
    faces = [np.stack([low, after, here], axis=-1), np.stack([low + 1, here + last, after + last], axis=-1)]
    for ring in range(len(rings) - 1):
        a, b = here + ring * count, after + ring * count
        faces += [np.stack([a, b, b + count], axis=-1), np.stack([a, b + count, a + count], axis=-1)]
    return np.concatenate([*rings, ends]), np.concatenate(faces).astype(np.int32)


def _fan(corners: int) -> Triangles:
    """Return the triangles of a convex polygon."""
    return np.array([[0, n, n + 1] for n in range(1, corners - 1)], np.int32)
