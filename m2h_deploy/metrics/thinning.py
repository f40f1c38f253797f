"""Thin boundaries as the boundary benchmarks do: non-maximum suppression, then morphological thinning."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Width of the border, in pixels, in which SEISM's suppression fades boundaries out.
BORDER = 5

#: Bits of one word in `thin_above`.
_BITS = 64


def thin(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Thin to lines of one pixel, keeping connections, like MATLAB's bwmorph(mask, 'thin', Inf).

    Source: Lam, Lee and Suen, "Thinning Methodologies", PAMI 14(9) 1992, page 879. Two half steps that remove pixels
    from opposite sides are repeated until nothing changes.

    Args:
        mask: bool (H, W).

    Returns:
        bool (H, W).
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    _thin_words([padded], np.flatnonzero(padded))
    return padded[1:-1, 1:-1].astype(bool)


def thin_above(
    strength: npt.NDArray[np.float32], thresholds: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Thin the pixels strictly above each threshold, all thresholds at once.

    A pixel's selections are the bits of a word, and the half steps of `thin` are bitwise operations on words.

    Args:
        strength: float32 (H, W), without NaN.
        thresholds: (T,), ascending, compared as float32.

    Returns:
        The pixels that are left at any threshold, bool (H, W), and whether each of them, in raster order, is left at
        each threshold, bool (T, pixels).
    """
    limits = thresholds.astype(np.float32)
    above = strength > limits[0]
    padded = np.pad(above, 1)
    pixels = np.flatnonzero(padded)
    passed = np.searchsorted(limits, strength[above])  # number of limits below the value
    planes = []
    for start in range(0, len(limits), _BITS):
        plane = np.zeros(padded.shape, np.uint64)
        bits = np.array([(1 << n) - 1 for n in range(_BITS + 1)], np.uint64)
        plane.ravel()[pixels] = bits[np.clip(passed - start, 0, _BITS)]
        planes.append(plane)
    _thin_words(planes, pixels)
    words = [plane[1:-1, 1:-1] for plane in planes]
    left = np.bitwise_or.reduce(words) != 0
    words = [word[left] for word in words]
    selected = np.empty((len(limits), words[0].size), bool)
    for i, row in enumerate(selected):
        np.not_equal(words[i // _BITS] & np.uint64(1 << i % _BITS), 0, out=row)
    return left, selected


def _thin_words(planes: list[npt.NDArray[Any]], pixels: npt.NDArray[np.intp]) -> None:
    """Thin each bit of the words in `planes` like `thin`, in place.

    Args:
        planes: unsigned integers, (H, W) each, contiguous, with a border of zeros.
        pixels: indices of the words that are not 0.
    """
    stride = planes[0].shape[1]
    ring = np.array([1, 1 - stride, -stride, -1 - stride, -1, stride - 1, stride, stride + 1])
    words = [plane.ravel() for plane in planes]
    near = np.zeros(words[0].size, bool)
    active, changed = pixels, (pixels, pixels)
    half_step = 0
    while changed[0].size or changed[1].size:
        if half_step >= 2:
            # A pixel was kept by this half step before. Only a change around it since then can make it deletable.
            near[:] = False
            for where in changed:
                near[where] = True
                for step in ring:
                    near[where + step] = True
            active = np.flatnonzero(near)
            active = active[np.logical_or.reduce([word[active] != 0 for word in words])]
        gone = np.zeros(active.size, bool)
        for word in words:
            current = word[active]
            deleted = current & _deletable([word[active + step] for step in ring], second=half_step % 2 == 1)
            word[active] = current & ~deleted
            gone |= deleted != 0
        changed = changed[1], active[gone]
        half_step += 1


def _deletable(neighbors: list[npt.NDArray[Any]], *, second: bool) -> npt.NDArray[Any]:
    """Evaluate conditions G1, G2 and G3 (G3' in the second half step) of Lam, Lee and Suen, bit by bit.

    Args:
        neighbors: x1 to x8: east, then counter-clockwise.
        second: whether it is the second half step.
    """
    x1, x2, x3, x4, x5, x6, x7, x8 = neighbors
    after = x2 | x3, x4 | x5, x6 | x7, x8 | x1
    crossing = ~x1 & after[0], ~x3 & after[1], ~x5 & after[2], ~x7 & after[3]
    odd = crossing[0] ^ crossing[1] ^ crossing[2] ^ crossing[3]
    one_crossing = odd & ~(crossing[0] & crossing[1] | crossing[2] & crossing[3])
    pairs = x1 | x2, x3 | x4, x5 | x6, x7 | x8
    two_or_more = _two_of_four(pairs) & _two_of_four(after)
    all_four = pairs[0] & pairs[1] & pairs[2] & pairs[3] & after[0] & after[1] & after[2] & after[3]
    third = x5 & (after[2] | ~x4) if second else x1 & (after[0] | ~x8)
    return one_crossing & two_or_more & ~(all_four | third)


def _two_of_four(terms: tuple[npt.NDArray[Any], ...]) -> npt.NDArray[Any]:
    a, b, c, d = terms
    return (a & b) | (c & d) | ((a | b) & (c | d))


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
