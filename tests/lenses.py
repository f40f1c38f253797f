"""Lenses with distortion, and images as they would take them."""

from __future__ import annotations

import cv2
import numpy as np

from m2h_deploy.camera import Lens, camera_matrix
from m2h_deploy.data.rooms.render import room_intrinsics

#: Coefficients of each model, as calibrations of webcams and of wide lenses have them.
COEFFICIENTS = {
    "plumb_bob": (-0.28, 0.09, 0.001, -0.0005, -0.01),
    "rational_polynomial": (0.6, -0.35, 0.0008, -0.0003, 0.05, 0.9, -0.3, -0.02),
    "equidistant": (-0.02, 0.01, -0.004, 0.001),
}


def lens_of(model: str, height: int = 240, width: int = 320, coefficients: tuple[float, ...] | None = None) -> Lens:
    """Return a lens whose rectified images are those of `render_room`."""
    pinhole = room_intrinsics(height, width)
    given = COEFFICIENTS.get(model, ()) if coefficients is None else coefficients
    return Lens(width, height, pinhole, model, given, pinhole)


def distort(image: np.ndarray, lens: Lens, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Return what the lens makes of a rectified image: each of its pixels is looked up where it belongs.

    OpenCV solves for the undistorted point, which is the inverse of what rectification computes.
    """
    columns, rows = np.meshgrid(np.arange(lens.width), np.arange(lens.height))
    pixels = np.stack([columns, rows], -1).reshape(-1, 1, 2).astype(np.float64)
    source, target = camera_matrix(lens.camera), camera_matrix(lens.rectified or lens.camera)
    coefficients = np.array(lens.coefficients, np.float64)
    rotation = np.array(lens.rotation, np.float64).reshape(3, 3)
    if lens.model == "equidistant":
        ideal = cv2.fisheye.undistortPoints(pixels, source, coefficients, R=rotation, P=target)
    else:
        exact = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-9)
        solve = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)  # OpenCV 4 has both, OpenCV 5 the latter
        ideal = solve(pixels, source, coefficients, R=rotation, P=target, criteria=exact)
    places = ideal.reshape(lens.height, lens.width, 2).astype(np.float32)
    return cv2.remap(image, places[..., 0], places[..., 1], interpolation, borderMode=cv2.BORDER_REPLICATE)
