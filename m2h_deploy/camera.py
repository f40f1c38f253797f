"""Parse a camera's image size and intrinsics as users give them."""

from __future__ import annotations

import math

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError

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
