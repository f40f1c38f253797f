"""Correction for the focal length alone, without a measured distance.

A network that sees one image cannot tell a camera with a narrow view from one that stands nearer. m2h-tiny, trained
with NYUv2's view, was measured on rooms with horizontal views from 50 to 100 degrees and with images of 4:3, 16:9, 1:1
and 3:4: the factor that its depth lacks is, to within 2 %, a power of the focal length by height times one of the focal
length by width. The height matters more: the row where the floor meets an object tells its distance.
"""

from __future__ import annotations

import math

from m2h_deploy.data.frame import NYU_INTRINSICS, Intrinsics

#: Measured exponents, see docs/calibration.md. Geometry gives 1 for their sum.
_BY_HEIGHT, _BY_WIDTH = 0.65, 0.19

_TRAINED_WIDTH, _TRAINED_HEIGHT = 640, 480


def focal_scale(camera: Intrinsics, height: int, width: int) -> float:
    """Estimate the scale of depth for a camera from its focal length, for a network trained on NYUv2's view.

    Args:
        camera: Intrinsics, pixels.
        height: Height of its images, pixels.
        width: Width of its images, pixels.
    """
    by_width = camera.fx / width / (NYU_INTRINSICS.fx / _TRAINED_WIDTH)
    by_height = camera.fy / height / (NYU_INTRINSICS.fy / _TRAINED_HEIGHT)
    return math.pow(by_height, _BY_HEIGHT) * math.pow(by_width, _BY_WIDTH)
