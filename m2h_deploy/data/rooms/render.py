"""Synthetic furnished rooms with exact labels, rendered from two integers with NumPy, without a download.

They replace NYUv2 where it is not available: in tests, for training the embedded default model, in examples. Figures
measured on them do not predict figures on NYUv2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2h_deploy.camera import intrinsics_of_view
from m2h_deploy.data.classes import NYU40_CLASSES, nyu_class
from m2h_deploy.data.frame import NYU_INTRINSICS, Frame, Intrinsics
from m2h_deploy.data.labels import boundaries
from m2h_deploy.data.rooms.geometry import Camera, Hits, cast, surfaces
from m2h_deploy.data.rooms.layout import Room, choose_camera, make_room
from m2h_deploy.data.rooms.shading import draw_exposure, expose, meter, radiance
from m2h_deploy.data.rooms.shadows import random_shadows
from m2h_deploy.errors import M2HError

#: Classes that occur in the rooms, as labels in memory (0-based).
ROOM_CLASSES: tuple[int, ...] = tuple(
    sorted(
        nyu_class(name)
        for name in (
            "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
            "picture", "curtain", "pillow", "floor mat", "ceiling", "books", "television", "box", "lamp",
        )
    )
)  # fmt: skip

#: Widest horizontal field of view, degrees: beyond it a pinhole image shows little but the border.
WIDEST_FOV = 150.0

#: Classes of the faces of a room, in the order of `Room.faces`.
FACE_CLASSES = tuple(nyu_class(n) for n in ("wall", "wall", "wall", "wall", "floor", "ceiling"))


def room_name(seed: int, index: int) -> str:
    """Return the name of room `index` of series `seed`."""
    return f"room_{seed}_{index:05d}"


def room_intrinsics(height: int, width: int, fov: float | None = None) -> Intrinsics:
    """Make a camera with square pixels and the principal point at the center.

    Args:
        height: pixels.
        width: pixels.
        fov: horizontal field of view, degrees; None for NYUv2's, 63.3 degrees.

    Raises:
        M2HError: the field of view is impossible.
    """
    if fov is not None:
        return intrinsics_of_view(fov, height, width)
    f = NYU_INTRINSICS.fx / 640 * width
    return Intrinsics(f, f, (width - 1) / 2, (height - 1) / 2)


def render_room(seed: int, index: int, height: int = 240, width: int = 320, fov: float | None = None) -> Frame:
    """Render room `index` of the endless series `seed`; the same integers give the same frame.

    Args:
        seed: the series, >= 0. Use different series for training and for evaluation.
        index: the room, >= 0; each has its own layout, furniture, light and camera.
        height: pixels, >= 16.
        width: pixels, >= 16.
        fov: horizontal field of view, degrees, at most 150; None for NYUv2's. Another one may choose another place for
            the camera.

    Returns:
        A frame with every label and `intrinsics`. Depth, normals and semantics are exact at pixel centers; an edge
        pixel is
        one whose right or lower neighbor belongs to another object (`boundaries`).

    Raises:
        M2HError: a size or a number is out of range.
    """
    return render_room_with_instances(seed, index, height, width, fov)[0]


def render_room_with_instances(
    seed: int, index: int, height: int = 240, width: int = 320, fov: float | None = None
) -> tuple[Frame, npt.NDArray[np.uint8]]:
    """Render like `render_room`, with instance numbers.

    Args:
        seed: as for `render_room`.
        index: as for `render_room`.
        height: as for `render_room`.
        width: as for `render_room`.
        fov: as for `render_room`.

    Returns:
        The frame, and an instance number (1..255) for each pixel, uint8 (H, W); equal numbers of one class are one
        object.

    Raises:
        M2HError: a size or a number is out of range.
    """
    check_room(seed, index, height, width, fov)
    rng = np.random.default_rng([seed, index])
    room = make_room(rng)
    intrinsics = room_intrinsics(height, width, fov)
    camera = choose_camera(room, rng, intrinsics, (height, width))
    hits = see(room, camera)
    light, _ = radiance(room, camera, hits, random_shadows(room, rng))
    image = expose(light, draw_exposure(meter(light), rng), rng)
    return label_view(room, camera, hits, image, room_name(seed, index))


def check_room(seed: int, index: int, height: int, width: int, fov: float | None = None) -> None:
    """Raise M2HError if a room or an image of it cannot have these numbers."""
    if height < 16 or width < 16:
        raise M2HError(f"room of {height}x{width} pixels: both sides must be at least 16")
    if seed < 0 or index < 0:
        raise M2HError(f"room seed {seed}, index {index}: both must be 0 or more")
    if fov is not None and not 1 <= fov <= WIDEST_FOV:
        raise M2HError(f"field of view {fov:g}: rooms are rendered with 1 to {WIDEST_FOV:g} degrees")


def see(room: Room, camera: Camera) -> Hits:
    """Find the surfaces that a camera sees."""
    return surfaces(room.solids, camera, *cast(room.solids, room.size, camera))


def label_view(
    room: Room, camera: Camera, hits: Hits, image: npt.NDArray[np.uint8], name: str
) -> tuple[Frame, npt.NDArray[np.uint8]]:
    """Make the frame of a view, with its labels, and the instance number of each pixel, uint8 (H, W)."""
    semantics, instances = _labels(room, hits)
    frame = Frame(
        image=image,
        name=name,
        depth=hits.depth.astype(np.float32),
        # `m2h_deploy.data.frame` defines normals into the surface; the ray caster's normals face the camera.
        normals=(-(hits.normals @ camera.rotation)).astype(np.float32),
        semantics=semantics,
        edges=boundaries(segments(semantics, instances)),
        intrinsics=camera.intrinsics,
    )
    return frame, instances


def segments(semantics: npt.NDArray[np.uint8], instances: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """Assign a number (> 0) to each pair of class and instance; 0 where the class is unlabeled.

    Args:
        semantics: uint8 (H, W), 255 where unlabeled.
        instances: uint8 (H, W).

    Returns:
        int32 (H, W).
    """
    numbers = (semantics.astype(np.int32) + 1) * 256 + instances
    numbers[semantics == 255] = 0
    return numbers


def _labels(room: Room, hits: Hits) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    # The last six entries are the faces, because `Hits.solid` has negative indices for them.
    classes = [s.label for s in room.solids] + list(FACE_CLASSES[::-1])
    owners = [s.instance for s in room.solids] + [6, 5, 4, 3, 2, 1]
    return np.asarray(classes, np.uint8)[hits.solid], np.asarray(owners, np.int32)[hits.solid].astype(np.uint8)


@dataclass(frozen=True)
class Rooms:
    """Data set of `count` rooms of the series `seed`, rendered on access."""

    count: int
    seed: int = 0
    height: int = 240
    width: int = 320
    fov: float | None = None
    """Horizontal field of view, degrees; None for NYUv2's."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of NYUv2's 40 classes, in label order."""
        return NYU40_CLASSES

    @property
    def derived(self) -> frozenset[str]:
        """Empty: all labels are rendered."""
        return frozenset()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return render_room(self.seed, index, self.height, self.width, self.fov)

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(self.count))
