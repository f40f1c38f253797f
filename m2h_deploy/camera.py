"""Cameras: image size and intrinsics as users give them, lens distortion, and the rectification that removes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError

Image = TypeVar("Image", bound=NDArray[Any])

#: Default horizontal angle of view in degrees: that of a common webcam, and near NYUv2's 63.
ASSUMED_FOV = 60.0


def parse_intrinsics(text: str) -> Intrinsics:
    """Parse `fx,fy,cx,cy` in pixels. Raises M2HError on anything else."""
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise M2HError(f"intrinsics '{text}': give fx,fy,cx,cy in pixels, such as 518.9,519.5,325.6,253.7") from None
    if not (all(math.isfinite(value) for value in (fx, fy, cx, cy)) and fx > 0 and fy > 0):
        raise M2HError(f"intrinsics '{text}': focal lengths must be above 0")
    return Intrinsics(fx, fy, cx, cy)


def parse_camera_size(text: str) -> tuple[int, int]:
    """Parse a camera size such as `640x480` to (width, height). Raises M2HError on anything else."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise M2HError(f"camera size '{text}': give width and height as in 640x480")
    if not (int(parts[0]) and int(parts[1])):
        raise M2HError(f"camera size '{text}': both sides must be above 0")
    return int(parts[0]), int(parts[1])


def intrinsics_of_view(fov: float, height: int, width: int) -> Intrinsics:
    """Return a centered pinhole camera with a horizontal angle of view of `fov` degrees and square pixels.

    Raises:
        M2HError: The angle is impossible.
    """
    if not 1 <= fov < 179:
        raise M2HError(f"fov {fov:g}: the horizontal angle of view must be between 1 and 179 degrees")
    focal = width / 2 / math.tan(math.radians(fov) / 2)
    return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)


#: Numbers of coefficients that each distortion model of sensor_msgs/CameraInfo has, in OpenCV's order. OpenCV's longer
#: forms of the rational model add a thin prism (12) and a tilted sensor (14).
DISTORTION_MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@dataclass(frozen=True)
class Lens:
    """Calibration of a camera with lens distortion, as sensor_msgs/CameraInfo states it, for one size of images.

    A distorted image has the intrinsics `camera`. The rectified one has the intrinsics `rectified`, in a frame that is
    turned by `rotation`; for a single camera these are usually the same intrinsics and no rotation.
    """

    width: int
    height: int
    camera: Intrinsics
    """K."""
    model: str = ""
    """One of `DISTORTION_MODELS`; any other name, if no coefficient differs from 0."""
    coefficients: tuple[float, ...] = ()
    """D."""
    rectified: Intrinsics | None = None
    """The left 3 x 3 part of P; None: that of `camera`."""
    rotation: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    """R, row by row: from the camera's frame to the rectified one."""

    def __post_init__(self) -> None:
        if not self.distorted:
            return
        if self.model not in DISTORTION_MODELS:
            known = ", ".join(DISTORTION_MODELS)
            raise M2HError(f"distortion model '{self.model}' is not known: calibrate the camera with one of {known}")
        counts = DISTORTION_MODELS[self.model]
        if len(self.coefficients) not in counts:
            expected = " or ".join(map(str, counts))
            raise M2HError(
                f"distortion model {self.model} has {expected} coefficients, not {len(self.coefficients)}: "
                "calibrate the camera again"
            )
        values = (*self.coefficients, *self.rotation)
        turn = np.array(self.rotation, np.float64)
        if not np.isfinite(values).all() or turn.shape != (9,) or not _is_rotation(turn.reshape(3, 3)):
            raise M2HError("lens calibration: a coefficient is not finite, or R is not a rotation: calibrate again")

    @property
    def distorted(self) -> bool:
        """Whether any coefficient differs from 0."""
        return any(self.coefficients)

    def scaled(self, height: int, width: int) -> Lens:
        """Return the lens for images of another size."""
        sizes = (height, width, self.height, self.width)
        return Lens(
            width,
            height,
            self.camera.scaled(*sizes),
            self.model,
            self.coefficients,
            None if self.rectified is None else self.rectified.scaled(*sizes),
            self.rotation,
        )


def _is_rotation(matrix: NDArray[np.float64]) -> bool:
    return bool(np.allclose(matrix @ matrix.T, np.eye(3), atol=1e-3) and np.linalg.det(matrix) > 0)


def camera_matrix(camera: Intrinsics) -> NDArray[np.float64]:
    """Return the intrinsics as float64 (3, 3)."""
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], np.float64)


class Rectification:
    """Removes the distortion of one lens from its images, with maps that are computed once.

    A lens without distortion leaves images as they are, with the intrinsics `lens.camera`.
    """

    def __init__(self, lens: Lens) -> None:
        """Compute the maps."""
        self.lens = lens
        self._maps: tuple[NDArray[Any], NDArray[Any]] | None = None
        self.outside: NDArray[np.bool_] | None = None
        """bool (H, W), pixels of the rectified image that the camera does not see; None if it sees all."""
        if lens.distorted:
            self._maps = _maps(lens)
            seen = self._remap(np.full((lens.height, lens.width), 255, np.uint8))
            self.outside = seen < 255 if (seen < 255).any() else None

    @property
    def camera(self) -> Intrinsics:
        """Intrinsics of the rectified images."""
        lens = self.lens
        return lens.rectified if lens.distorted and lens.rectified is not None else lens.camera

    def __call__(self, image: Image) -> Image:
        """Rectify an image bilinearly; pixels that the camera does not see are 0.

        Args:
            image: uint8 or float32, (H, W) or (H, W, 3), of the lens's size.

        Returns:
            A new array of the same shape; `image` itself if the lens has no distortion.

        Raises:
            M2HError: The image has another size.
        """
        if self._maps is None:
            return image
        if image.shape[:2] != (self.lens.height, self.lens.width):
            raise M2HError(
                f"rectification: the image is {image.shape[1]}x{image.shape[0]}, and the calibration is for "
                f"{self.lens.width}x{self.lens.height}"
            )
        return self._remap(image)

    def _remap(self, image: Image) -> Image:
        assert self._maps is not None
        return cast(Image, cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT))


def _maps(lens: Lens) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute the maps of `cv2.remap`, in fixed point, which it applies fastest."""
    source, target = camera_matrix(lens.camera), camera_matrix(lens.rectified or lens.camera)
    coefficients = np.array(lens.coefficients, np.float64)
    rotation = np.array(lens.rotation, np.float64).reshape(3, 3)
    compute = cv2.fisheye.initUndistortRectifyMap if lens.model == "equidistant" else cv2.initUndistortRectifyMap
    first, second = compute(source, coefficients, rotation, target, (lens.width, lens.height), cv2.CV_16SC2)
    return first, second
