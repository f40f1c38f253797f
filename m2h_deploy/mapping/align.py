"""Align a map with the true surface: iterative closest points, point to plane, rigid or with scale."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from m2h_deploy.mapping.mesh import Points
from m2h_deploy.mapping.surface import NearestSamples

#: Largest distance of two points that are taken for the same, meters: first to bring the surfaces together, then to
#: leave out what only one of them has.
_LIMITS = (0.5, 0.2)
_STEPS = 40

#: Beyond this factor an alignment with scale has failed: a map that shrinks to a point fits every surface.
_LARGEST_SCALE = 3.0
#: Largest logarithm of the factor of one step.
_LARGEST_STEP = 0.5

#: Points of each surface that are used, and the fewest that determine a transform.
_POINTS, _FEWEST = 10_000, 100


@dataclass(frozen=True, eq=False)
class Similarity:
    """Transform of points: scale * rotation @ point + shift."""

    scale: float
    rotation: Points
    shift: Points
    center: Points = field(default_factory=lambda: np.zeros(3))
    """Center of the map before the transform."""

    @staticmethod
    def identity() -> Similarity:
        """Make the transform that changes nothing."""
        return Similarity(1.0, np.eye(3), np.zeros(3))

    def apply(self, points: Points) -> Points:
        """Transform points, float64 (N, 3)."""
        return self.scale * points @ self.rotation.T + self.shift

    @property
    def degrees(self) -> float:
        """Angle of the rotation, degrees."""
        return float(np.degrees(np.linalg.norm(cv2.Rodrigues(self.rotation)[0])))

    @property
    def translation(self) -> Points:
        """Movement of the map's center, float64 (3,), meters."""
        return self.apply(self.center[None])[0] - self.center


def is_plausible(scale: float) -> bool:
    """Return whether an alignment with this scale has not failed."""
    return 1 / _LARGEST_SCALE < scale < _LARGEST_SCALE


def find_alignment(points: Points, target: Points, normals: Points, *, scaled: bool) -> Similarity:
    """Find the transform that brings points on a map onto the true surface, starting from where they are.

    Each point on the map is paired with the nearest on the true surface, and the other way round: otherwise, a map that
    shrinks to a point would fit.

    Args:
        points: On the map, float64 (N, 3), meters.
        target: On the true surface, float64 (M, 3), meters.
        normals: Of `target`, unit vectors, float64 (M, 3).
        scaled: Look for a scale as well.

    Returns:
        The transform; the identity if too few points are near the surface; one whose scale is not plausible if the
        search failed.
    """
    if min(len(points), len(target)) < _FEWEST:
        return Similarity.identity()
    points, every = points[:: -(-len(points) // _POINTS)], -(-len(target) // _POINTS)
    center = points.mean(axis=0)
    on_target, on_map = NearestSamples(target), NearestSamples(points - center)
    scale, rotation, middle = 1.0, np.eye(3), center
    for limit in _LIMITS:
        for _ in range(_STEPS if is_plausible(scale) else 0):
            arms = scale * (points - center) @ rotation.T
            there, here = on_target(arms + middle), on_map((target[::every] - middle) @ rotation / scale)
            reached, missed = there.distances < limit, scale * here.distances < limit
            pairs = np.concatenate([np.flatnonzero(reached), here.chosen[missed]])
            places = np.concatenate([there.chosen[reached], every * np.flatnonzero(missed)])
            if len(pairs) < _FEWEST:
                break
            step = _step(arms[pairs], target[places] - middle, normals[places], scaled)
            rotation = cv2.Rodrigues(step[:3])[0] @ rotation
            middle, scale = middle + step[3:6], scale * float(np.exp(np.clip(step[6], -_LARGEST_STEP, _LARGEST_STEP)))
            if np.abs(step).max() < 1e-6 or not is_plausible(scale):
                break
    return Similarity(scale, rotation, middle - scale * rotation @ center, center)


def _step(arms: Points, there: Points, normals: Points, scaled: bool) -> Points:
    """Solve for the rotation vector, shift and logarithm of the scale, (7,), that bring points into their planes."""
    columns = [np.cross(arms, normals), normals]
    if scaled:
        columns.append(np.einsum("ij,ij->i", arms, normals)[:, None])
    rest = np.einsum("ij,ij->i", there - arms, normals)
    found = np.linalg.lstsq(np.concatenate(columns, axis=1), rest, rcond=1e-6)[0]
    return np.concatenate([found, np.zeros(7 - len(found))])
