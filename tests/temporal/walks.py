"""A short walk through a rendered room: true depth, labels and normals, and poses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.geometry import cast, look, surfaces
from m2h_deploy.data.rooms.layout import make_room
from m2h_deploy.data.rooms.render import room_intrinsics

HEIGHT, WIDTH = 96, 128


@dataclass(frozen=True)
class Walk:
    intrinsics: Intrinsics
    poses: list
    depths: list
    labels: list
    normals: list


def make_walk(frames: int = 12, seed: int = 3) -> Walk:
    room = make_room(np.random.default_rng([seed, 0]))
    intrinsics = room_intrinsics(HEIGHT, WIDTH)
    middle = room.size / 2
    poses, depths, labels, normals = [], [], [], []
    classes = np.array([solid.label for solid in room.solids] + [21, 1, 0, 0, 0, 0], np.uint8)
    for index in range(frames):
        position = np.array([middle[0] - 0.3 + 0.04 * index, middle[1], 1.4])
        camera = look(position, (0.4 + 0.03 * index, -0.15, 0.0), intrinsics, (HEIGHT, WIDTH))
        depth, solid, rays = cast(room.solids, room.size, camera)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = camera.rotation, camera.position
        hits = surfaces(room.solids, camera, depth, solid, rays)
        poses.append(pose)
        depths.append(depth.astype(np.float32))
        labels.append(classes[solid])
        normals.append((-(hits.normals @ camera.rotation)).astype(np.float32))
    return Walk(intrinsics, poses, depths, labels, normals)
