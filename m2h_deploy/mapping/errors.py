"""Errors of a map: its distance from the true surface, and how much of that surface it has.

Accuracy is measured from points on the map, uniform by area, to the true surface; completeness from the observed
samples of the true surface to the map. All distances are unsigned, exact and to triangles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.mapping.align import Similarity, find_alignment
from m2h_deploy.mapping.mesh import Points, SemanticMesh, unique_rows
from m2h_deploy.mapping.surface import MeshDistance, NearestSamples, TrueSurface
from m2h_deploy.metrics.base import ratio
from m2h_deploy.metrics.bootstrap import Interval, draws, interval

#: Distance within which two surfaces agree, meters.
NEAR = 0.05

#: Side of the cubes that are resampled for intervals, meters. Errors within a cube depend on each other.
CELL = 0.5

#: Distance between the points that an alignment uses, meters.
_ALIGNED = 0.05

#: Sums of one cell: of points on the map their number, distance, squared distance and number within `NEAR`; of observed
#: samples of the true surface the same without the square; of labeled points their number and that of right labels.
SUMS = ("points", "distance", "square", "near", "samples", "gap", "reached", "labeled", "right")


@dataclass(frozen=True, eq=False)
class Cells:
    """Sums of a map's errors in cubes of space, from which figures and their intervals are computed."""

    places: npt.NDArray[np.int64]
    """int64 (K, 3), sorted: the cube at meters `CELL` * place."""
    sums: npt.NDArray[np.float64]
    """float64 (K, len(SUMS))."""

    def at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Return the sums of the cubes `places`, int64 (L, 3), float64 (L, len(SUMS)); 0 for cubes without points."""
        row = {place: number for number, place in enumerate(map(tuple, self.places.tolist()))}
        rows = np.array([row.get(place, len(row)) for place in map(tuple, places.tolist())], np.int64)
        return np.concatenate([self.sums, np.zeros((1, len(SUMS)))])[rows]


@dataclass(frozen=True, eq=False)
class MapErrors:
    """Errors of a map. Distances are in meters, shares from 0 to 1; NaN where nothing can be measured."""

    mean: float
    """Mean distance of the map from the true surface (ME)."""
    sd: float
    """Standard deviation of that distance (SD)."""
    median: float
    precision: float
    """Share of the map within `NEAR` of the true surface."""
    completeness: float
    """Share of the observed true surface within `NEAR` of the map."""
    gap: float
    """Mean distance of the observed true surface from the map."""
    fscore: float
    """Harmonic mean of precision and completeness."""
    label_accuracy: float
    """Share of the map whose label is that of the nearest observed sample of the true surface."""
    miou: float
    """Mean intersection over union of these labels, over the classes that occur in either."""
    alignment: Similarity
    """Transform of the map before it was measured."""
    cells: Cells


def figures(sums: npt.NDArray[np.float64]) -> dict[str, float]:
    """Compute the figures that follow from summed cells, by their name in `MapErrors`."""
    points, distance, square, near, samples, gap, reached, labeled, right = sums
    mean, precision, completeness = ratio(distance, points), ratio(near, points), ratio(reached, samples)
    both = precision + completeness
    return {
        "mean": mean,
        "sd": float(np.sqrt(max(ratio(square, points) - mean**2, 0.0))) if points else float("nan"),
        "precision": precision,
        "completeness": completeness,
        "gap": ratio(gap, samples),
        # Without a map there is no precision, but nothing of the surface is in it.
        "fscore": 0.0 if completeness == 0 else ratio(2 * precision * completeness, both),
        "label_accuracy": ratio(right, labeled),
    }


def judge_map(
    mesh: SemanticMesh,
    truth: TrueSurface,
    *,
    align: Literal["none", "se3", "sim3"] = "none",
    spacing: float = 0.02,
    table: npt.NDArray[np.uint8] | None = None,
) -> MapErrors:
    """Compare a map with the true surface.

    Args:
        mesh: The map. Its labels are the classes of the true surface, after `table`.
        truth: The true surface, after it observed the views.
        align: Measure the map where it is, after the best rigid transform, or after the best similarity transform.
        spacing: Distance between points on the map, meters.
        table: The map's label of each label of the surface, uint8 (256,); None if they are the same.
    """
    observed = truth.points[truth.observed]
    alignment = Similarity.identity()
    if align != "none":
        moving = mesh.sample(_ALIGNED).points
        alignment = find_alignment(moving, observed, truth.normals[truth.observed], scaled=align == "sim3")
        mesh = mesh.at(alignment.apply(mesh.vertices))
    samples = mesh.sample(spacing)
    distances, gaps = truth.distances(samples.points), MeshDistance(mesh)(observed)
    true_labels = np.full(len(samples.points), IGNORE_LABEL, np.uint8)
    if truth.labels is not None and samples.labels is not None and len(observed) and len(samples.points):
        true_labels = truth.labels[truth.observed][NearestSamples(observed)(samples.points).chosen]
        true_labels = true_labels if table is None else table[true_labels]
        true_labels = np.where(samples.labels == IGNORE_LABEL, IGNORE_LABEL, true_labels).astype(np.uint8)
    labels = samples.labels if samples.labels is not None else true_labels
    labeled = true_labels != IGNORE_LABEL
    cells = _cells(
        (samples.points, [np.ones(len(distances)), distances, distances**2, distances < NEAR]),
        (observed, [np.ones(len(gaps)), gaps, gaps < NEAR]),
        (samples.points, [labeled, labeled & (labels == true_labels)]),
    )
    return MapErrors(
        **figures(cells.sums.sum(axis=0)),
        median=float(np.median(distances)) if len(distances) else float("nan"),
        miou=_miou(labels[labeled], true_labels[labeled]),
        alignment=alignment,
        cells=cells,
    )


def _cells(*groups: tuple[Points, list[npt.NDArray]]) -> Cells:
    """Add the values of points by the cell that they are in; each group has its own points."""
    found = [np.floor(points / CELL).astype(np.int64) for points, _ in groups]
    places, row = unique_rows(np.concatenate(found))
    ends = np.cumsum([len(part) for part in found])[:-1]
    sums = [
        np.bincount(rows, weights=column.astype(np.float64), minlength=len(places))
        for rows, (_, columns) in zip(np.split(row, ends), groups, strict=True)
        for column in columns
    ]
    return Cells(places, np.stack(sums, axis=1))


def _miou(labels: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8]) -> float:
    hits, given, expected = (np.bincount(part, minlength=256) for part in (truth[labels == truth], labels, truth))
    union = given + expected - hits
    return float(np.mean(hits[union > 0] / union[union > 0])) if union.any() else float("nan")


def intervals(cells: Cells) -> dict[str, Interval]:
    """Return the 95 % interval of each figure of `figures`: a bootstrap over cells."""
    return _bootstrap(cells.sums, figures)


def differences(first: Cells, second: Cells) -> dict[str, tuple[float, Interval]]:
    """Return each figure of the second map less that of the first, with its 95 % interval.

    This is a paired bootstrap over the cells of either map: the intervals are those of the difference.
    """
    places, _ = unique_rows(np.concatenate([first.places, second.places]))
    sums = np.concatenate([first.at(places), second.at(places)], axis=1)

    def difference(total: npt.NDArray[np.float64]) -> dict[str, float]:
        one, two = figures(total[: len(SUMS)]), figures(total[len(SUMS) :])
        return {name: two[name] - one[name] for name in one}

    found = _bootstrap(sums, difference)
    return {name: (value, found[name]) for name, value in difference(sums.sum(axis=0)).items()}


def _bootstrap(
    sums: npt.NDArray[np.float64], figures_of: Callable[[npt.NDArray[np.float64]], dict[str, float]]
) -> dict[str, Interval]:
    points = figures_of(sums.sum(axis=0))
    if len(sums) == 0:
        return dict.fromkeys(points, (float("nan"), float("nan")))
    weights = draws(len(sums))
    samples = [figures_of(total) for total in weights @ sums]
    return {
        name: interval(point, np.array([sample[name] for sample in samples]), len(sums))
        for name, point in points.items()
    }
