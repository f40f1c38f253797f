"""How a camera sees its images: intrinsics from CameraInfo, and rectification. Without ROS, as in `messages`."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.camera import Lens, Rectification
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_perception import messages

_IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


class View(NamedTuple):
    """How the camera sees one image, after rectification."""

    intrinsics: Intrinsics | None = None
    """Of the image, pixels; None if unknown."""
    reason: str = ""
    """Why the intrinsics are unknown."""
    distorted: bool = False
    """Whether the image has lens distortion, which the intrinsics ignore."""
    info: Any = None
    """CameraInfo of the rectified image; None if it was not rectified."""
    outside: NDArray[np.bool_] | None = None
    """bool (H, W), pixels of the rectified image that the camera does not see; None if it sees all."""


class _Size(NamedTuple):
    width: int
    height: int


class Calibration:
    """Keeps the last CameraInfo. The executor's thread calls `put`, the stream's reader `see`."""

    def __init__(self, topic: str, *, rectify: bool = False) -> None:
        """Start without a CameraInfo.

        Args:
            topic: of CameraInfo, for messages.
            rectify: whether `see` rectifies images.
        """
        self._topic, self._rectify = topic, rectify
        self._made_for: Any = None
        self._made: tuple[Rectification, Any] | None = None
        self.info: Any = None
        """The last CameraInfo message; None before the first."""

    def put(self, message: Any) -> None:
        """Take a CameraInfo message."""
        self.info = message

    def see(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], View]:
        """Rectify an image if wanted, and find its intrinsics.

        Args:
            image: uint8 (H, W, 3) BGR, as the camera took it.

        Returns:
            The image, and how the camera sees it.

        Raises:
            M2HError: It cannot be rectified.
        """
        size = _Size(image.shape[1], image.shape[0])
        if self._rectify:
            rectification, info = self._rectification(size)
            return rectification(image), View(rectification.camera, info=info, outside=rectification.outside)
        if self.info is None:
            return image, View(reason=f"no CameraInfo on {self._topic}")
        try:
            return image, View(messages.intrinsics(self.info, size), distorted=any(self.info.d))
        except M2HError as error:
            return image, View(reason=str(error))

    def _rectification(self, size: _Size) -> tuple[Rectification, Any]:
        """Return the rectification of images of a size, and their CameraInfo, None if that is the camera's own."""
        info = self.info
        if info is None:
            raise M2HError(f"no CameraInfo on {self._topic}, which rectification needs")
        made_for = (size, _facts(info))
        if made_for != self._made_for or self._made is None:
            try:
                rectification = Rectification(lens_of(info, size))
            except M2HError as error:
                raise M2HError(f"CameraInfo on {self._topic}: {error}") from None
            self._made = rectification, rectified_info(info, rectification) if rectification.lens.distorted else None
            self._made_for = made_for
        return self._made


def _facts(info: Any) -> tuple[Any, ...]:
    numbers = (tuple(map(float, values)) for values in (info.k, info.d, info.r, info.p))
    return (info.width, info.height, info.distortion_model, *numbers, messages.region(info))


def lens_of(info: Any, image: Any) -> Lens:
    """Return the lens of a CameraInfo, scaled to the size of an image, which may be binned.

    P without a focal length is K, and R of zeros is the identity: drivers leave them empty.

    Raises:
        M2HError: The camera is not calibrated, its distortion model is not known, or its images have another aspect
            ratio or are a region of interest.
    """
    messages.intrinsics(info, image)  # raises
    numbers = [float(value) for value in info.p]
    rectified = Intrinsics(numbers[0], numbers[5], numbers[2], numbers[6])
    rotation = tuple(map(float, info.r))
    k = [float(value) for value in info.k]
    lens = Lens(
        width=info.width or image.width,
        height=info.height or image.height,
        camera=Intrinsics(k[0], k[4], k[2], k[5]),
        model=info.distortion_model,
        coefficients=tuple(map(float, info.d)),
        rectified=rectified if np.isfinite(numbers).all() and rectified.fx > 0 and rectified.fy > 0 else None,
        rotation=rotation if any(rotation) else _IDENTITY,
    )
    return lens if messages.fits(info, image) else lens.scaled(image.height, image.width)


def rectified_intrinsics(info: Any, image: Any) -> Intrinsics:
    """Return the pinhole camera of rectified images of this size. Raises M2HError as `lens_of`."""
    lens = lens_of(info, image)
    return lens.rectified if lens.distorted and lens.rectified is not None else lens.camera


def rectified_info(info: Any, rectification: Rectification) -> Any:
    """Return a copy of a CameraInfo for its rectified images: D is 0, K is the left part of P, R is the identity."""
    camera, lens = rectification.camera, rectification.lens
    shift = float(info.p[3]) * lens.width / (info.width or lens.width)  # of the second camera of a stereo pair
    info = copy.copy(info)
    info.width, info.height = lens.width, lens.height
    info.distortion_model, info.d = "plumb_bob", [0.0] * 5
    info.k = [camera.fx, 0.0, camera.cx, 0.0, camera.fy, camera.cy, 0.0, 0.0, 1.0]
    info.r = list(_IDENTITY)
    info.p = [camera.fx, 0.0, camera.cx, shift, 0.0, camera.fy, camera.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info
