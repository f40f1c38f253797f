"""The tables of a map run, for the terminal and the page: headings and cells as text."""

from __future__ import annotations

from collections.abc import Iterable

from m2h_deploy.mapping.compare import Difference
from m2h_deploy.mapping.figures import ALIGNMENT_NAMES, ALL_FRAME_FIGURES, MAP_FIGURES, Figure
from m2h_deploy.mapping.result import MapResult, MapRow, MapScore

FIGURES = {figure.key: figure for figure in (*MAP_FIGURES, *ALL_FRAME_FIGURES)}

#: Headings of `map_cells`.
MAP_COLUMNS = ("map", "aligned", *(f"{figure.heading} {figure.unit}" for figure in MAP_FIGURES), "moved")

#: Headings of `frame_cells`.
FRAME_COLUMNS = ("frames", *(f"{figure.heading} {figure.unit}" for figure in ALL_FRAME_FIGURES), "age ms")

#: Stages whose speed is shown.
RATES = ("preprocess", "inference", "postprocess", "filter", "fuse")

#: Headings of `rate_cells`.
RATE_COLUMNS = ("frames per second", *RATES)

#: Headings of `difference_cells`.
DIFFERENCE_COLUMNS = ("figure", "aligned", "difference", "95 % interval", "significant")

_VERDICTS = {"better": "yes, better", "worse": "yes, worse", "equal": "equal", "unclear": "no"}


def map_cells(row: MapRow, score: MapScore) -> list[str]:
    """Return the figures of a map under one alignment, and what it was moved and divided by."""
    found = []
    if score.alignment in ("se3", "sim3"):
        found += [f"{100 * score.translation:.1f} cm", f"{score.rotation:.1f}°"]
    if score.alignment in ("scale", "sim3"):
        found.append(f"scale {score.scale:.3f}")
    return [
        row.name,
        ALIGNMENT_NAMES[score.alignment],
        *(figure.text(score.figures.get(figure.key)) for figure in MAP_FIGURES),
        ", ".join(found),
    ]


def frame_cells(row: MapRow) -> list[str]:
    """Return the figures of the frames of a row."""
    return [
        row.name,
        *(figure.text(row.figures.get(figure.key)) for figure in ALL_FRAME_FIGURES),
        "-" if row.frame_age is None else f"{row.frame_age:.1f}",
    ]


def rate_cells(row: MapRow) -> list[str]:
    """Return the frames per second of each stage of a row, in the order of `RATES`."""
    return [row.name, *(f"{row.rates[stage]:.1f}" if stage in row.rates else "-" for stage in RATES)]


def by_pair(differences: Iterable[Difference]) -> dict[str, list[Difference]]:
    """Return differences by the two rows that they compare, as words."""
    pairs: dict[str, list[Difference]] = {}
    for difference in differences:
        pairs.setdefault(f"{difference.row} against {difference.against}", []).append(difference)
    return pairs


def difference_cells(difference: Difference) -> list[str]:
    """Return a difference with its interval, and whether it is significant."""
    figure = FIGURES[difference.figure]
    low, high = (figure.text(end, sign=True) for end in difference.interval)
    return [
        figure.heading,
        "" if difference.alignment is None else ALIGNMENT_NAMES[difference.alignment],
        f"{figure.text(difference.value, sign=True)} {difference_unit(figure)}",
        f"{low} to {high}",
        _VERDICTS[difference.verdict],
    ]


def difference_unit(figure: Figure) -> str:
    """Return the unit of a difference: shares differ by points."""
    return "points" if figure.unit == "%" else figure.unit


def headline(result: MapResult) -> str:
    """Return the result in one sentence."""
    count = f"{len(result.rows)} map{'s' * (len(result.rows) != 1)} of {result.posed} frames of {result.sequence}"
    return count if result.surface is None else f"{count}, compared with {result.surface}"
