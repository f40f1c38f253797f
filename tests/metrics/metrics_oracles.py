"""Slow, simple versions of the boundary protocol, written independently of the tested code."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

# Lam, Lee and Suen's x1 .. x8: east, then counter-clockwise, as (row, column) steps.
RING = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]


def thin_by_pixel(mask: np.ndarray) -> np.ndarray:
    """Thin with sets of pixels: delete the pixels that meet the conditions, in alternating odd and even half steps."""
    pixels = {(int(r), int(c)) for r, c in np.argwhere(mask)}
    while True:
        before = set(pixels)
        for rotation in (0, 4):
            pixels -= {p for p in pixels if _goes(p, pixels, rotation)}
        if pixels == before:
            out = np.zeros(mask.shape, bool)
            for p in pixels:
                out[p] = True
            return out


def _goes(pixel: tuple[int, int], pixels: set[tuple[int, int]], rotation: int) -> bool:
    x = {k + 1: (pixel[0] + dr, pixel[1] + dc) in pixels for k, (dr, dc) in enumerate(RING)}
    x[9] = x[1]
    crossings = sum(not x[2 * i - 1] and (x[2 * i] or x[2 * i + 1]) for i in range(1, 5))
    n1 = sum(x[2 * k - 1] or x[2 * k] for k in range(1, 5))
    n2 = sum(x[2 * k] or x[2 * k + 1] for k in range(1, 5))

    def turned(k: int) -> bool:
        return x[(k + rotation - 1) % 8 + 1]

    third = (turned(2) or turned(3) or not turned(8)) and turned(1)
    return crossings == 1 and 2 <= min(n1, n2) <= 3 and not third


def match_with_outliers(prediction: np.ndarray, target: np.ndarray, radius: float) -> int:
    """Solve BSDS's assignment problem densely: a pair costs its distance, an unmatched pixel 100 radii."""
    first, second = np.argwhere(prediction), np.argwhere(target)
    if not len(first) or not len(second):
        return 0
    distance = np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1))
    alone = 100 * max(radius, 1.0)
    cost = np.zeros((len(first) + len(second),) * 2)
    cost[: len(first), : len(second)] = np.where(distance <= radius, distance, 10 * alone)
    cost[: len(first), len(second) :] = alone
    cost[len(first) :, : len(second)] = alone
    rows, columns = linear_sum_assignment(cost)
    paired = (rows < len(first)) & (columns < len(second))
    assert (distance[rows[paired], columns[paired]] <= radius).all()
    return int(paired.sum())


def edge_counts(strength: np.ndarray, target: np.ndarray, radius: float) -> np.ndarray:
    """Return (99, 4): matched predicted, predicted, matched target, target pixels at thresholds 0.01 .. 0.99."""
    truth = thin_by_pixel(target)
    rows = []
    for i in range(1, 100):
        found = thin_by_pixel(strength > np.float32(i / 100))
        pairs = match_with_outliers(found, truth, radius)
        rows.append((pairs, int(found.sum()), pairs, int(truth.sum())))
    return np.array(rows, float)


def matched_pairs(prediction: np.ndarray, target: np.ndarray, radius: float) -> int:
    """Return the size of a maximum matching of pixels at most `radius` apart, solved from scratch by SciPy."""
    first, second = np.argwhere(prediction), np.argwhere(target)
    if not len(first) or not len(second):
        return 0
    graph = csr_matrix(cdist(first, second, "sqeuclidean") <= radius**2)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def suppress_by_pixel(probability: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Apply Structured Edges' suppression, radius 1, factor 1.01, fade 5, pixel by pixel."""
    height, width = probability.shape
    out = probability.astype(float).copy()
    for r in range(height):
        for c in range(width):
            for side in (-1, 1):
                x = min(max(c + side * math.cos(angle[r, c]), 0.0), width - 1.001)
                y = min(max(r + side * math.sin(angle[r, c]), 0.0), height - 1.001)
                x0, y0, fx, fy = int(x), int(y), x - int(x), y - int(y)
                neighbor = sum(
                    float(probability[y0 + j, x0 + i]) * (fx if i else 1 - fx) * (fy if j else 1 - fy)
                    for i in (0, 1)
                    for j in (0, 1)
                )
                if 1.01 * float(probability[r, c]) < neighbor:
                    out[r, c] = 0
            for distance in (r, height - 1 - r, c, width - 1 - c):
                out[r, c] *= min(distance / 5, 1)
    return out
