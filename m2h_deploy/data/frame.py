"""One image and what is known about it: the type that every loader gives and every metric takes.

Conventions in memory, whatever a dataset writes in its files:

- image: uint8 (H, W, 3), BGR as OpenCV gives it
- depth: float32 (H, W), meters along the optical axis (not along the ray), 0 where unknown, never NaN
- normals: float32 (H, W, 3), unit vectors, (0, 0, 0) where unknown, see below
- semantics: uint8 (H, W), 0-based class index (NYUv2 class 1, wall, is 0), 255 where unlabeled
- edges: uint8 (H, W), 1 on a boundary, else 0

Normals are written as the paper derives them from depth (equation 16a): proportional to
(-dz/dx, -dz/dy, 1). In OpenCV's camera frame (x right, y down, z forward) that is the unit vector that
points away from the camera, into the surface; read as a camera-facing normal, its axes are x left, y up,
z towards the camera. So a wall seen straight on is (0, 0, 1), a floor (0, 1, 0), a ceiling (0, -1, 0), the
wall on the right (1, 0, 0) and the wall on the left (-1, 0, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera, in pixels; pixel centers are at whole coordinates."""

    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, height: int, width: int, of_height: int, of_width: int) -> Intrinsics:
        """The same camera after resizing images of `of_height` x `of_width` to `height` x `width`."""
        sx, sy = width / of_width, height / of_height
        return Intrinsics(self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5)

    def rays(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """Viewing rays, float64 (height, width, 3), with z = 1: depth times ray is the point in meters."""
        x = (np.arange(width) - self.cx) / self.fx
        y = (np.arange(height) - self.cy) / self.fy
        rays = np.ones((height, width, 3))
        rays[..., 0] = x[None, :]
        rays[..., 1] = y[:, None]
        return rays


#: The color camera of NYUv2 at 640x480, from the toolbox of the dataset (camera_params.m).
NYU_INTRINSICS = Intrinsics(518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)


@dataclass(frozen=True, eq=False)
class Frame:
    """One image with its labels; a label that the source does not have is None."""

    image: npt.NDArray[np.uint8]
    name: str
    depth: npt.NDArray[np.float32] | None = None
    normals: npt.NDArray[np.float32] | None = None
    semantics: npt.NDArray[np.uint8] | None = None
    edges: npt.NDArray[np.uint8] | None = None
    intrinsics: Intrinsics | None = None
    #: Labels computed from other labels instead of read ("normals", "edges"): good for a look at a
    #: model, not comparable with figures measured on the annotated ones (the paper's Table I).
    derived: frozenset[str] = field(default_factory=frozenset)

    @property
    def height(self) -> int:
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        return int(self.image.shape[1])


class Dataset(Protocol):
    """A finite, ordered source of frames that reads one frame at a time.

    One that reads files also has `files_of(index)`, the paths of a frame's files, labels included, there or not. One
    that leaves files out has `skipped`, a line for each that says why.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the semantic classes in label order; empty where the source has no semantics."""
        ...

    @property
    def derived(self) -> frozenset[str]:
        """Labels that are computed, not annotated; see `Frame.derived`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]: ...
