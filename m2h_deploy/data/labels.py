"""Labels computed from other labels: normals from depth, boundaries from segments."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Intrinsics

#: Largest distance, in pixels from each side, over which an unlabeled gap between two segments is closed.
_GAP = 8


def normals_from_depth(
    depth: npt.NDArray[np.float32], intrinsics: Intrinsics, window: int = 7
) -> npt.NDArray[np.float32]:
    """Fit a least-squares plane to the depth in each `window` x `window` neighborhood.

    For a pinhole camera, a plane n·P = 1 is linear in the viewing ray: 1/z = n·(x, y, 1). For each pixel, three normal
    equations are built from box sums and solved. Unknown pixels have weight 0.

    Args:
        depth: float32 (H, W), meters, 0 where unknown.
        intrinsics: the camera of `depth`.
        window: side of the neighborhood, odd, pixels.

    Returns:
        float32 (H, W, 3), unit vectors in the convention of `m2h_deploy.data.frame`; (0, 0, 0) where depth is unknown
        or no plane can be fitted.
    """
    known = depth > 0
    weight = known.astype(np.float64)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=known)
    rays = intrinsics.rays(*depth.shape)
    # In float64, because box sums of the ray products lose digits far from the principal point. Coordinates centered
    # in the window would avoid that, but differ for each pixel.
    ray = [rays[..., 0], rays[..., 1], rays[..., 2]]
    pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]

    def box(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        summed = cv2.boxFilter(values, cv2.CV_64F, (window, window), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(summed, np.float64)

    a, b, c, d, e, f = (box(weight * ray[i] * ray[j]) for i, j in pairs)
    r0, r1, r2 = (box(inverse * ray[i]) for i in range(3))
    # Cofactors of the symmetric matrix [[a, b, c], [b, d, e], [c, e, f]]. Division by its determinant is omitted, since
    # that is not negative and only scales n.
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    normals = np.stack(
        [c00 * r0 + c01 * r1 + c02 * r2, c01 * r0 + c11 * r1 + c12 * r2, c02 * r0 + c12 * r1 + c22 * r2], -1
    )
    count = np.rint(box(weight))
    length = np.linalg.norm(normals, axis=-1)
    solvable = known & (count >= (window * window) // 3) & (length > 0)
    normals /= np.where(solvable, length, 1.0)[..., None]
    normals[~solvable] = 0.0
    return normals.astype(np.float32)


def boundaries(segments: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
    """Mark the boundaries between segments.

    Unlabeled gaps of a few pixels between two segments, which hand-drawn labels have, are first closed from both
    sides. The border of a larger unlabeled area is not a boundary.

    Args:
        segments: integers (H, W), one number per segment, 0 where unlabeled.

    Returns:
        uint8 (H, W), 1 where the pixel to the right or below belongs to another segment, else 0.
    """
    filled = _close_gaps(segments)
    edges = np.zeros(segments.shape, np.uint8)
    right = (filled[:, :-1] != filled[:, 1:]) & (filled[:, :-1] > 0) & (filled[:, 1:] > 0)
    below = (filled[:-1] != filled[1:]) & (filled[:-1] > 0) & (filled[1:] > 0)
    edges[:, :-1] |= right
    edges[:-1] |= below
    return edges


def _close_gaps(segments: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    unlabeled = segments == 0
    if not unlabeled.any() or unlabeled.all():
        return segments
    distance, nearest = cv2.distanceTransformWithLabels(
        unlabeled.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # OpenCV numbers the labeled pixels from 1 in its own order; `lookup` maps each number to a segment.
    lookup = np.zeros(int(nearest.max()) + 1, segments.dtype)
    lookup[nearest[~unlabeled]] = segments[~unlabeled]
    closed: npt.NDArray[np.integer] = np.where(distance <= _GAP, lookup[nearest], 0)
    return closed
