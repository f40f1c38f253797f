"""Views of synthetic rooms, by ray casting without shading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.data.rooms.geometry import Camera, cast, look
from m2h_deploy.data.rooms.layout import Room, make_room
from m2h_deploy.data.rooms.mesh import room_mesh
from m2h_deploy.data.rooms.render import FACE_CLASSES, room_intrinsics
from m2h_deploy.mapping.mesh import SemanticMesh


class View(NamedTuple):
    """One view, in the order of the arguments of `Volume.integrate`."""

    depth: np.ndarray
    labels: np.ndarray
    intrinsics: Intrinsics
    pose: Pose


def a_room(seed: int) -> Room:
    return make_room(np.random.default_rng([seed, 0]))


def surface_of(room: Room) -> SemanticMesh:
    vertices, triangles, labels = room_mesh(room)
    return SemanticMesh(vertices, triangles.astype(np.int64), labels)


def views_of(room: Room, count: int, size: tuple[int, int], seed: int = 0) -> Iterator[View]:
    """Look at the room from places on an ellipse, in turn across the room and at the nearest wall."""
    rng = np.random.default_rng(seed)
    classes = np.array([solid.label for solid in room.solids] + list(FACE_CLASSES[::-1]), np.uint8)
    for number in range(count):
        camera = _camera(room, number, count, size, rng)
        depth, index, _ = cast(room.solids, room.size, camera)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation, camera.position
        yield View(depth.astype(np.float32), classes[index], camera.intrinsics, pose)


def _camera(room: Room, number: int, count: int, size: tuple[int, int], rng: np.random.Generator) -> Camera:
    for _ in range(200):
        angle = 2 * np.pi * (number + 0.5 * rng.random()) / count
        across = rng.uniform(0.15, 0.42, 2) * room.size[:2] * [np.cos(angle), np.sin(angle)]
        position = np.array([*(room.size[:2] / 2 + across), rng.uniform(0.6, 1.8)])
        offsets = [np.abs((position - solid.center) @ solid.rotation) - solid.half for solid in room.solids]
        if all((offset > 0.2).any() for offset in offsets):
            break
    yaw = angle + np.pi / 2 if number % 2 else angle - np.pi / 2 + rng.uniform(-0.6, 0.6)
    turn = (float(yaw), float(rng.uniform(-0.5, 0.35)), 0.0)
    return look(position, turn, room_intrinsics(*size), size)


#: A camera of 48 x 64 pixels at the origin that looks along z.
CAMERA = Intrinsics(56.0, 56.0, 31.5, 23.5)
AT_ORIGIN = np.eye(4)


def wall(depth: float, label: int | None = None) -> View:
    """View of a wall straight ahead."""
    labels = np.full((48, 64), 255 if label is None else label, np.uint8)
    return View(np.full((48, 64), depth, np.float32), labels, CAMERA, AT_ORIGIN)


def sheet(z: float, half: float = 1.0, label: int = 0, center: tuple[float, float] = (0.0, 0.0)) -> SemanticMesh:
    """Make a square of two triangles at height `z` that faces down, towards -z."""
    corners = [(center[0] + x * half, center[1] + y * half, z) for x, y in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    return SemanticMesh(np.array(corners), np.array([[0, 1, 2], [0, 2, 3]]), np.full(4, label, np.uint8))


def joined(*meshes: SemanticMesh) -> SemanticMesh:
    starts = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes)])
    return SemanticMesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.triangles + start for mesh, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.labels for mesh in meshes]),
    )
