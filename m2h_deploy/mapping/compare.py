"""Paired differences of two variants, with 95 % intervals from a bootstrap over space and over time.

Maps are resampled by cells of 0.5 m, frames by segments of consecutive frames. Neighboring points and frames are nearly
the same: resampled one by one, they would make the intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m2h_deploy.mapping.errors import differences as cell_differences
from m2h_deploy.mapping.figures import FRAME_FIGURES, MAP_FIGURES, Figure
from m2h_deploy.mapping.sums import frame_figures
from m2h_deploy.mapping.variant import Variant
from m2h_deploy.metrics.bootstrap import Interval, draws, interval

Verdict = Literal["better", "worse", "equal", "unclear"]


@dataclass(frozen=True)
class Difference:
    """Difference of a figure between two rows."""

    row: str
    against: str
    figure: str
    """Key of the figure, see `m2h_deploy.mapping.figures`."""
    alignment: str | None
    """Alignment of the maps; None for figures of frames."""
    value: float
    """Of `row` minus `against`, in the stored unit; NaN if one of them is unknown."""
    interval: Interval
    """95 % interval."""
    count: int
    """Number of cells or segments."""
    verdict: Verdict
    """Of `row`: better or worse if the interval excludes 0, equal if nothing differs, else unclear."""


def differences(row: str, variant: Variant, against: str, other: Variant) -> tuple[Difference, ...]:
    """Compare `variant` with `other`, paired by cell and by segment.

    Args:
        row: Name of the row of `variant`.
        variant: What is judged.
        against: Name of the row of `other`.
        other: The reference.
    """
    found: list[Difference] = []

    def add(figure: Figure, alignment: str | None, value: float, ends: Interval, count: int) -> None:
        verdict = _verdict(value, ends, lower=figure.lower)
        found.append(Difference(row, against, figure.key, alignment, value, ends, count, verdict))

    for alignment, judged in variant.maps.items():
        if alignment not in other.maps:
            continue
        second = other.maps[alignment].cells
        places = np.unique(np.concatenate([judged.cells.places, second.places]), axis=0)
        compared = cell_differences(second, judged.cells)
        for figure in MAP_FIGURES:
            value, ends = compared[figure.key]
            if not np.isnan(value):
                add(figure, alignment, value, ends, len(places))
    for metric, figures in FRAME_FIGURES.items():
        if metric in variant.sums and metric in other.sums:
            for figure, value, ends, count in _by_segment(metric, figures, variant, other):
                add(figure, None, value, ends, count)
    return tuple(found)


def _by_segment(
    metric: str, figures: tuple[Figure, ...], variant: Variant, other: Variant
) -> Iterator[tuple[Figure, float, Interval, int]]:
    """Yield each known figure with the difference variant - other, its interval, and the number of segments."""
    sides = [variant.sums[metric], other.sums[metric]]
    used = np.any([(side != 0).any(axis=1) for side in sides], axis=0)
    count = int(used.sum())
    if count == 0:
        return
    weights = np.concatenate([np.ones((1, count)), draws(count)])
    values = [[frame_figures(metric, total) for total in weights @ side[used]] for side in sides]
    for figure in figures:
        first, second = (np.array([found[figure.key] for found in side]) for side in values)
        point, *samples = first - second
        if not np.isnan(point):
            yield figure, float(point), interval(float(point), np.array(samples), count), count


def _verdict(value: float, ends: Interval, *, lower: bool) -> Verdict:
    low, high = ends
    if low == high == 0:
        return "equal"
    if np.isnan([value, low, high]).any() or low <= 0 <= high:
        return "unclear"
    return "better" if (high < 0) == lower else "worse"
