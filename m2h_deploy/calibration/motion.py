"""Samples from the motion of a camera with known poses: points are tracked between two frames and triangulated.

The baseline between the two poses is what is measured in meters; depth cameras and tapes are not needed.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.calibration.samples import SampleList, Samples
from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.runtime import Runtime

Floats = NDArray[np.float64]

#: A second frame is at most this many frames after the first.
_WINDOW = 30
#: Baseline, meters: shorter ones give no depth, of longer ones too little is seen in both frames.
_BASELINE = (0.04, 0.4)
#: Largest rotation between the two frames, degrees.
_ROTATION = 15.0
#: Smallest angle between the two rays of a point, degrees.
_PARALLAX = 1.5
#: Largest distance of a point that was tracked there and back, and of one from its epipolar line, pixels.
_RETURN, _EPIPOLAR = 0.5, 0.7
_CORNERS, _FEWEST_POINTS = 400, 10
#: Parts of a sequence that are left out of a fit together: neighboring frames are alike.
_PARTS = 10


def samples_of_motion(
    runtime: Runtime, sequence: Sequence, limit: int, progress: Callable[[int, int], None] | None = None
) -> Samples:
    """Triangulate points in up to `limit` frames of a sequence and pair them with the predicted depth.

    Args:
        runtime: Runtime without calibration.
        sequence: Frames with poses.
        limit: Number of frames, evenly spread.
        progress: Called with the numbers of finished frames and of all.

    Raises:
        M2HError: No frame has a pose, the camera hardly moves, or fewer than three parts of the sequence give points.
    """
    pairs = _pairs(sequence)
    if not pairs:
        raise M2HError(
            f"{sequence.folder}: no two frames have poses {_BASELINE[0]:g} to {_BASELINE[1]:g} m apart in similar "
            "directions: move the camera sideways, and check that the poses are in meters"
        )
    chosen = [pairs[i * len(pairs) // min(limit, len(pairs))] for i in range(min(limit, len(pairs)))]
    parts = min(_PARTS, len(chosen))
    found = SampleList(runtime.manifest.depth_range)
    for done, (first, second) in enumerate(chosen):
        image, other = sequence.read_image(first), sequence.read_image(second)
        if image.shape != other.shape:
            raise M2HError(f"{sequence.folder}: {first.name} and {second.name} are of different sizes")
        assert first.pose is not None and second.pose is not None
        motion = np.linalg.inv(second.pose) @ first.pose
        places, measured = triangulate(image, other, motion, sequence.intrinsics)
        if len(measured) >= _FEWEST_POINTS:
            depth = runtime(image).depth
            assert depth is not None
            column, row = np.rint(places).astype(int).T
            found.add(depth[row, column], measured, done * parts // len(chosen))
        if progress is not None:
            progress(done + 1, len(chosen))
    return found.samples(len(chosen), f"{sequence.folder}: parts with points that were tracked")


def _pairs(sequence: Sequence) -> list[tuple[Moment, Moment]]:
    """Return for each frame with a pose a later one with the longest suitable baseline."""
    moments, pairs = sequence.moments, []
    for index, first in enumerate(moments):
        best: tuple[float, Moment] | None = None
        for second in moments[index + 1 : index + 1 + _WINDOW]:
            if first.pose is None or second.pose is None:
                continue
            motion = np.linalg.inv(second.pose) @ first.pose
            baseline = float(np.linalg.norm(motion[:3, 3]))
            angle = np.degrees(np.arccos(np.clip((np.trace(motion[:3, :3]) - 1) / 2, -1, 1)))
            if _BASELINE[0] <= baseline <= _BASELINE[1] and angle <= _ROTATION and (not best or baseline > best[0]):
                best = baseline, second
        if best is not None:
            pairs.append((first, best[1]))
    return pairs


def triangulate(
    image: NDArray[np.uint8], other: NDArray[np.uint8], motion: Pose, camera: Intrinsics
) -> tuple[Floats, Floats]:
    """Track corners from one image to another and triangulate them.

    Args:
        image: uint8 (H, W, 3) BGR.
        other: The second image, of the same size.
        motion: From the camera of `image` to that of `other`, float64 (4, 4), meters.
        camera: Intrinsics of both, pixels.

    Returns:
        Places (N, 2) in `image`, pixels, and their depth (N,), meters. Points that are not on their epipolar line, or
        seen under nearly the same angle, are left out.
    """
    grays = [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (image, other)]
    corners = cv2.goodFeaturesToTrack(grays[0], _CORNERS, 0.01, 5)
    if corners is None:
        return np.empty((0, 2)), np.empty(0)
    tracked, there, _ = cv2.calcOpticalFlowPyrLK(grays[0], grays[1], corners, None, winSize=(15, 15), maxLevel=4)  # type: ignore[call-overload]
    returned, back, _ = cv2.calcOpticalFlowPyrLK(grays[1], grays[0], tracked, None, winSize=(15, 15), maxLevel=4)  # type: ignore[call-overload]
    good = (there[:, 0] == 1) & (back[:, 0] == 1)
    good &= np.linalg.norm((returned - corners)[:, 0], axis=1) < _RETURN
    places, others = corners[good, 0].astype(np.float64), tracked[good, 0].astype(np.float64)
    first, second = _rays(places, camera), _rays(others, camera)
    turned = first @ motion[:3, :3].T
    shift = motion[:3, 3]
    # z * turned + shift is parallel to the second ray: two equations for z, solved by least squares.
    slopes = turned[:, :2] - second[:, :2] * turned[:, 2:]
    ends = second[:, :2] * shift[2] - shift[:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.sum(slopes * ends, axis=1) / np.sum(slopes**2, axis=1)
        points = depth[:, None] * turned + shift
        seen = points[:, :2] / points[:, 2:]
        error = np.linalg.norm((seen - second[:, :2]) * (camera.fx, camera.fy), axis=1)
        cosine = np.sum(turned * points, axis=1) / np.linalg.norm(turned, axis=1) / np.linalg.norm(points, axis=1)
    keep = np.isfinite(depth) & (depth > 0) & (points[:, 2] > 0) & (error < _EPIPOLAR)
    keep &= np.degrees(np.arccos(np.clip(np.nan_to_num(cosine, nan=1.0), -1, 1))) > _PARALLAX
    return places[keep], depth[keep]


def _rays(places: Floats, camera: Intrinsics) -> Floats:
    rays = np.ones((len(places), 3))
    rays[:, 0], rays[:, 1] = (places[:, 0] - camera.cx) / camera.fx, (places[:, 1] - camera.cy) / camera.fy
    return rays
