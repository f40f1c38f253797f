"""Thin boundaries as the boundary benchmarks do: non-maximum suppression, then morphological thinning."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

#: Width of the border, in pixels, in which SEISM's suppression fades boundaries out.
BORDER = 5

# Bit of each neighbor: x1 is east, then counter-clockwise, as Lam, Lee and Suen number them.
_BITS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)


def _deletable(code: int, second: bool) -> bool:
    """Check conditions G1, G2 and G3 (G3' in the second half step) of Lam, Lee and Suen for one neighborhood."""
    x = [bool(code >> i & 1) for i in range(8)]
    crossings = sum(not x[i] and (x[i + 1] or x[(i + 2) % 8]) for i in (0, 2, 4, 6))
    pairs = sum(x[i] or x[i + 1] for i in (0, 2, 4, 6))
    shifted_pairs = sum(x[i + 1] or x[(i + 2) % 8] for i in (0, 2, 4, 6))
    east, south_east_side = (x[4], x[5] or x[6] or not x[3]) if second else (x[0], x[1] or x[2] or not x[7])
    return crossings == 1 and 2 <= min(pairs, shifted_pairs) <= 3 and not (east and south_east_side)


@cache
def _keep_tables() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Tabulate, for each of the two half steps, 1 where a pixel with that neighborhood is kept."""
    first, second = (np.array([not _deletable(c, half) for c in range(256)], np.uint8) for half in (False, True))
    return first, second


def thin(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Thin to lines of one pixel, keeping connections, like MATLAB's bwmorph(mask, 'thin', Inf).

    Source: Lam, Lee and Suen, "Thinning Methodologies", PAMI 14(9) 1992, page 879. Two half steps that remove pixels
    from opposite sides are repeated until nothing changes.

    Args:
        mask: bool (H, W).

    Returns:
        bool (H, W).
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
    """Estimate the direction across the boundary at each pixel, as Structured Edges does.

    The estimate uses second derivatives of the map after a triangle filter of radius 4. On a straight crest it gives
    arctan(tan^2) of the angle, which is up to 12 degrees off, and always 0 on an exactly horizontal one. This is kept,
    because the published figures depend on it.

    Args:
        probability: float32 (H, W), 0..1.

    Returns:
        float32 (H, W), radians from the x axis, 0..pi.
    """
    smooth = _triangle_filtered(_triangle_filtered(probability).T).T
    dy, dx = np.gradient(smooth)
    dxx = np.gradient(dx, axis=1)
    dxy, dyy = np.gradient(dx, axis=0), np.gradient(dy, axis=0)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + np.float32(1e-5))), np.pi).astype(np.float32)


def _triangle_filtered(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Apply a triangle filter of radius 4 along the rows, mirrored at the ends."""
    # Shifted sums instead of a library filter, because libraries add in another order near the right end of a row, and
    # the orientation depends on the sign of derivatives that should be 0.
    width = image.shape[1]
    padded = np.pad(image, ((0, 0), (4, 4)), mode="symmetric")
    total = np.zeros(image.shape, np.float32)
    for i, weight in enumerate((1, 2, 3, 4, 5, 4, 3, 2, 1)):
        total += np.float32(weight / 25) * padded[:, i : i + width]
    return total


def suppress_non_maxima(probability: npt.NDArray[np.float32], border: int = BORDER) -> npt.NDArray[np.float32]:
    """Set pixels to 0 where a neighbor across the boundary is larger by more than 1 %.

    This is Structured Edges' suppression with SEISM's arguments: radius 1, bilinear neighbors, factor 1.01, and a fade
    over the outer `border` pixels (times 0, 1/5 ... 4/5). A boundary on the outermost row or column is therefore never
    found, as in SEISM.

    Args:
        probability: float32 (H, W), 0..1, at least 2x2.
        border: width of the fade, pixels; 0 for no fade.

    Returns:
        float32 (H, W), 0..1.
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
