"""Thin boundaries, as the boundary benchmarks do it: non-maximum suppression, then morphological thinning."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

#: Boundaries this close to the image border are faded out by SEISM's suppression, pixels.
BORDER = 5

# Where each neighbor's bit sits: x1 is east, then counter-clockwise, as Lam, Lee and Suen number them.
_BITS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


def _deletable(code: int, second: bool) -> bool:
    """Conditions G1, G2 and G3 (G3' in the second half) of Lam, Lee and Suen for one neighborhood."""
    x = [bool(code >> i & 1) for i in range(8)]
    crossings = sum(not x[i] and (x[i + 1] or x[(i + 2) % 8]) for i in (0, 2, 4, 6))
    pairs = sum(x[i] or x[i + 1] for i in (0, 2, 4, 6))
    shifted_pairs = sum(x[i + 1] or x[(i + 2) % 8] for i in (0, 2, 4, 6))
    east, south_east_side = (x[4], x[5] or x[6] or not x[3]) if second else (x[0], x[1] or x[2] or not x[7])
    return crossings == 1 and 2 <= min(pairs, shifted_pairs) <= 3 and not (east and south_east_side)


@cache
def _keep_tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """For each of the two half steps: 1 where a pixel with that neighborhood stays."""
    first, second = (np.array([not _deletable(c, half) for c in range(256)], np.uint8) for half in (False, True))
    return first, second


def thin(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Thin to lines of one pixel, keeping connections: MATLAB's bwmorph(mask, 'thin', Inf), bool (H, W).

    Source: Lam, Lee and Suen, "Thinning Methodologies", PAMI 14(9) 1992, page 879; two half steps that peel
    from opposite sides, until nothing changes.
    """
    current = mask.astype(np.uint8)
    while True:
        before = current
        for table in _keep_tables():
            neighbors = cv2.filter2D(current, cv2.CV_8U, _BITS, borderType=cv2.BORDER_CONSTANT)
            current = cv2.bitwise_and(current, cv2.LUT(neighbors, table))
        if np.array_equal(before, current):
            return current.astype(bool)


def orientation(probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Direction across the boundary at each pixel, radians from the x axis, 0..pi, float32 (H, W).

    Structured Edges' estimate: second derivatives of the map after a triangle filter of radius 4. On a straight
    crest it gives arctan(tan^2) of the angle, up to 12 degrees off, and always 0 on an exactly horizontal
    one; kept as it is, because the published figures rest on it.
    """
    smooth = _triangle_filtered(_triangle_filtered(probability).T).T
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dxy, dyy = np.gradient(dx, axis=0), np.gradient(dy, axis=0)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + np.float32(1e-5))), np.pi).astype(np.float32)


def _triangle_filtered(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Triangle filter of radius 4 along the rows, mirrored at the ends."""
    # Shifted sums, not a library filter: those add in another order near the right end of a row, and the sign of
    # a derivative that should be 0 decides the orientation.
    width = image.shape[1]
    padded = np.pad(image, ((0, 0), (4, 4)), mode="symmetric")
    total = np.zeros(image.shape, np.float32)
    for i, weight in enumerate((1, 2, 3, 4, 5, 4, 3, 2, 1)):
        total += np.float32(weight / 25) * padded[:, i : i + width]
    return total


def suppress_non_maxima(probability: npt.NDArray[np.float32], border: int = BORDER) -> npt.NDArray[np.float32]:
    """The map with every pixel set to 0 that a neighbor across the boundary beats by more than 1 %.

    Structured Edges' suppression with the arguments that SEISM uses: radius 1, bilinear neighbors, factor
    1.01, and a fade over the outer `border` pixels (times 0, 1/5 ... 4/5). A boundary on the outermost row or
    column is therefore never found, in SEISM as here.

    Args:
        probability: float32 (H, W), 0..1, at least 2x2.
        border: pixels; 0 for no fade.
    """
    height, width = probability.shape
    angle = orientation(probability)
    across, down = np.cos(angle), np.sin(angle)
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    thinned = probability.copy()
    raised = probability * np.float32(1.01)
    for side in (-1, 1):
        neighbor = _bilinear(probability, columns + side * across, rows + side * down)
        thinned[raised < neighbor] = 0
    for axis, size in ((0, height), (1, width)):
        for distance in range(min(border, size // 2)):
            fade = np.float32(distance / min(border, size // 2))
            for position in (distance, size - 1 - distance):
                thinned[(position, slice(None)) if axis == 0 else (slice(None), position)] *= fade
    return thinned


def _bilinear(
    image: npt.NDArray[np.float32], x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    height, width = image.shape
    x, y = x.clip(0, width - 1.001), y.clip(0, height - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right_share, bottom_share = x - left, y - top
    corner = top * width + left
    flat = image.ravel()
    upper = flat[corner] * (1 - right_share) + flat[corner + 1] * right_share
    lower = flat[corner + width] * (1 - right_share) + flat[corner + width + 1] * right_share
    return np.asarray(upper * (1 - bottom_share) + lower * bottom_share, np.float32)
