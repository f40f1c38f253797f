"""Synthetic furnished rooms with exact labels, from two integers: NumPy only, no download.

They stand in for NYUv2 where the data set itself is not there: in tests, in the embedded default model, in
a first look. Figures measured on them say nothing about NYUv2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import NYU40_CLASSES, nyu_class
from m2h_deploy.data.frame import NYU_INTRINSICS, Frame, Intrinsics
from m2h_deploy.data.labels import boundaries
from m2h_deploy.data.rooms.geometry import Hits, cast, surfaces
from m2h_deploy.data.rooms.layout import Room, choose_camera, make_room
from m2h_deploy.data.rooms.shading import expose, radiance
from m2h_deploy.errors import M2HError

#: The classes that occur in the rooms, as labels in memory (0-based).
ROOM_CLASSES: tuple[int, ...] = tuple(
    sorted(
        nyu_class(name)
        for name in (
            "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
            "picture", "curtain", "pillow", "floor mat", "ceiling", "books", "television", "box", "lamp",
        )
    )
)  # fmt: skip

_FACE_CLASSES = tuple(nyu_class(n) for n in ("wall", "wall", "wall", "wall", "floor", "ceiling"))


def room_name(seed: int, index: int) -> str:
    """Return the name of room `index` of series `seed`."""
    return f"room_{seed}_{index:05d}"


def room_intrinsics(height: int, width: int) -> Intrinsics:
    """NYUv2's field of view at another width, with square pixels and the center in the middle."""
    f = NYU_INTRINSICS.fx / 640 * width
    return Intrinsics(f, f, (width - 1) / 2, (height - 1) / 2)


def render_room(seed: int, index: int, height: int = 240, width: int = 320) -> Frame:
    """Room number `index` of the endless series `seed`, seen once; the same integers give the same frame.

    Args:
        seed: the series, >= 0. Use different series for training and for evaluation.
        index: the room, >= 0; each has its own layout, furniture, light and camera.
        height: pixels, >= 16.
        width: pixels, >= 16.

    Returns:
        A frame with every label and `intrinsics`. Depth, normals and semantics are exact at pixel
        centers; an edge pixel is one whose right or lower neighbor is another object (`boundaries`).

    Raises:
        M2HError: a size or a number out of range.
    """
    return render_room_with_instances(seed, index, height, width)[0]


def render_room_with_instances(
    seed: int, index: int, height: int = 240, width: int = 320
) -> tuple[Frame, npt.NDArray[np.uint8]]:
    """`render_room`, and an instance number (1..255) for each pixel; equal numbers of one class are one object."""
    if height < 16 or width < 16:
        raise M2HError(f"room of {height}x{width} pixels: both sides must be at least 16")
    if seed < 0 or index < 0:
        raise M2HError(f"room seed {seed}, index {index}: both must be 0 or more")
    rng = np.random.default_rng([seed, index])
    room = make_room(rng)
    intrinsics = room_intrinsics(height, width)
    camera = choose_camera(room, rng, intrinsics, (height, width))
    depth, solid, rays = cast(room.solids, room.size, camera)
    hits = surfaces(room.solids, camera, depth, solid, rays)
    image = expose(radiance(room, camera, hits, rng), rng)
    semantics, instances = _labels(room, hits)
    frame = Frame(
        image=image,
        name=room_name(seed, index),
        depth=depth.astype(np.float32),
        # Into the surface, as `m2h_deploy.data.frame` says; the ray caster's normals face the camera.
        normals=(-(hits.normals @ camera.rotation)).astype(np.float32),
        semantics=semantics,
        edges=boundaries(segments(semantics, instances)),
        intrinsics=intrinsics,
    )
    return frame, instances


def segments(semantics: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """One number (> 0) for each pair of class and instance; 0 where the class is unlabeled."""
    numbers = (semantics.astype(np.int32) + 1) * 256 + instances
    numbers[semantics == 255] = 0
    return numbers


def _labels(room: Room, hits: Hits) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    # The table's last six rows are the faces, so that the negative numbers of `Hits.solid` find them.
    classes = [s.label for s in room.solids] + list(_FACE_CLASSES[::-1])
    owners = [s.instance for s in room.solids] + [6, 5, 4, 3, 2, 1]
    return np.asarray(classes, np.uint8)[hits.solid], np.asarray(owners, np.int32)[hits.solid].astype(np.uint8)


@dataclass(frozen=True)
class Rooms:
    """`count` rooms of the series `seed` as a dataset, rendered when they are asked for."""

    count: int
    seed: int = 0
    height: int = 240
    width: int = 320

    @property
    def class_names(self) -> tuple[str, ...]:
        return NYU40_CLASSES

    @property
    def derived(self) -> frozenset[str]:
        return frozenset()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return render_room(self.seed, index, self.height, self.width)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(self.count))
