"""One image with its labels: the type that every loader returns and every metric takes.

Conventions in memory, for every data set:

- image: uint8 (H, W, 3), BGR as OpenCV gives it
- depth: float32 (H, W), meters along the optical axis (not along the ray), 0 where unknown, never NaN
- normals: float32 (H, W, 3), unit vectors, (0, 0, 0) where unknown, see below
- semantics: uint8 (H, W), 0-based class index (NYUv2 class 1, wall, is 0), 255 where unlabeled
- edges: uint8 (H, W), 1 on a boundary, else 0

Normals follow the paper's derivation from depth (equation 16a): they are proportional to (-dz/dx, -dz/dy, 1). In
OpenCV's camera frame (x right, y down, z forward) this unit vector points away from the camera, into the surface.
Interpreted as a normal that faces the camera, its axes are x left, y up, z towards the camera. A wall seen straight on
is (0, 0, 1), a floor (0, 1, 0), a ceiling (0, -1, 0), the wall on the right (1, 0, 0) and the wall on the left
(-1, 0, 0).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera, in pixels; pixel centers are at integer coordinates."""

    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, height: int, width: int, of_height: int, of_width: int) -> Intrinsics:
        """Return the camera after images of `of_height` x `of_width` are resized to `height` x `width`."""
        sx, sy = width / of_width, height / of_height
        return Intrinsics(self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5)

    def rays(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """Compute the viewing rays of all pixels, with z = 1: depth times ray is the point in meters.

        Returns:
            float64 (height, width, 3).
        """
        x = (np.arange(width) - self.cx) / self.fx
        y = (np.arange(height) - self.cy) / self.fy
        rays = np.ones((height, width, 3))
        rays[..., 0] = x[None, :]
        rays[..., 1] = y[:, None]
        return rays


#: Color camera of NYUv2 at 640x480, from the toolbox of the data set (camera_params.m).
NYU_INTRINSICS = Intrinsics(518.85790117450188, 519.46961112127485, 325.58244941119034, 253.73616633400465)


#: Rigid transform from the camera to the world, float64 (4, 4), meters. The camera has OpenCV's axes: x right, y down,
#: z forward. A pose that is unknown is None.
Pose = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frame:
    """One image with its labels, in the conventions of this module; a label that the source lacks is None."""

    image: npt.NDArray[np.uint8]
    name: str
    depth: npt.NDArray[np.float32] | None = None
    normals: npt.NDArray[np.float32] | None = None
    semantics: npt.NDArray[np.uint8] | None = None
    edges: npt.NDArray[np.uint8] | None = None
    intrinsics: Intrinsics | None = None
    #: Time of the image in seconds, and the camera's pose; only frames of a sequence have them.
    timestamp: float | None = None
    pose: Pose | None = None
    #: Labels computed from other labels instead of read ("normals", "edges"). Figures measured on them are
    #: not comparable with those on annotated labels (the paper's Table I).
    derived: frozenset[str] = field(default_factory=frozenset)

    @property
    def height(self) -> int:
        """Height of the image, pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Width of the image, pixels."""
        return int(self.image.shape[1])


class Dataset(Protocol):
    """Finite, ordered source of frames that reads one frame at a time.

    A data set that reads files also has `files_of(index)`, the paths of a frame's image and labels, whether they exist
    or not. One that skips files has `skipped`, a line for each with the reason.
    """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the semantic classes in label order; empty if the source has no semantics."""
        ...

    @property
    def derived(self) -> frozenset[str]:
        """Labels that are computed, not annotated; see `Frame.derived`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Frame: ...

    def __iter__(self) -> Iterator[Frame]: ...
