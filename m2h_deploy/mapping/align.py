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

#: Points of the map that are used, and the fewest that determine a transform.
_POINTS, _FEWEST = 20_000, 100


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


def find_alignment(points: Points, target: Points, normals: Points, *, scaled: bool) -> Similarity:
    """Find the transform that brings points on a map onto the true surface, starting from where they are.

    Args:
        points: On the map, float64 (N, 3), meters.
        target: On the true surface, float64 (M, 3), meters.
        normals: Of `target`, unit vectors, float64 (M, 3).
        scaled: Look for a scale as well.

    Returns:
        The transform; the identity if too few points are near the surface.
    """
    found = Similarity.identity()
    if min(len(points), len(target)) < _FEWEST:
        return found
    points = points[:: -(-len(points) // _POINTS)]
    center = points.mean(axis=0)
    nearest = NearestSamples(target)
    scale, rotation, middle = 1.0, np.eye(3), center
    for limit in _LIMITS:
        for _ in range(_STEPS):
            arms = scale * (points - center) @ rotation.T
            near = nearest(arms + middle)
            used = near.distances < limit
            if used.sum() < _FEWEST:
                break
            arm, there, normal = arms[used], target[near.chosen[used]], normals[near.chosen[used]]
            columns = [np.cross(arm, normal), normal]
            if scaled:
                columns.append(np.einsum("ij,ij->i", arm, normal)[:, None])
            rest = np.einsum("ij,ij->i", there - arm - middle, normal)
            step = np.linalg.lstsq(np.concatenate(columns, axis=1), rest, rcond=1e-6)[0]
            rotation = cv2.Rodrigues(step[:3])[0] @ rotation
            middle = middle + step[3:6]
            scale *= float(np.exp(step[6])) if scaled else 1.0
            if np.abs(step).max() < 1e-6:
                break
    return Similarity(scale, rotation, middle - scale * rotation @ center, center)
