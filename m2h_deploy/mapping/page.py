"""Write the result of a map run as one HTML page with pictures."""

from __future__ import annotations

from pathlib import Path

from m2h_deploy.causes import MachineError, reason
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.mapping import tables
from m2h_deploy.mapping.compare import Difference
from m2h_deploy.mapping.figures import ALIGNMENT_NAMES, ALIGNMENTS, ALL_FRAME_FIGURES, MAP_FIGURES
from m2h_deploy.mapping.result import MapResult
from m2h_deploy.visualize.html import Cell, data_url, render_page

PAGE = "map.html"

_STYLES = {"better": "pass", "worse": "fail", "equal": "", "unclear": "unsure"}


def write_page(result: MapResult, folder: Path) -> Path:
    """Write `map.html` into the folder of a map run: pictures, tables, the meaning of each figure.

    Raises:
        M2HError: A picture cannot be read, the page cannot be written, or jinja2 is not installed.
    """
    page = render_page(
        "map.html",
        result=result,
        headline=tables.headline(result),
        pictures=[
            (row.name, row.file, {what: _picture(folder / file) for what, file in result.pictures[row.name].items()})
            for row in result.rows
        ],
        map_columns=tables.MAP_COLUMNS,
        maps=[tables.map_cells(row, score) for row in result.rows for score in row.maps],
        frame_columns=tables.FRAME_COLUMNS,
        frames=[tables.frame_cells(row) for row in result.rows],
        rate_columns=tables.RATE_COLUMNS,
        rates=[tables.rate_cells(row) for row in result.rows],
        difference_columns=tables.DIFFERENCE_COLUMNS,
        differences={
            pair: [_difference(difference) for difference in found]
            for pair, found in tables.by_pair(result.differences).items()
        },
        meanings=[
            *((figure.heading, figure.words) for figure in (*MAP_FIGURES, *ALL_FRAME_FIGURES)),
            ("age", "time from an image to its prediction, filtered where the row is"),
            *((f"aligned: {ALIGNMENT_NAMES[name]}", words) for name, words in ALIGNMENTS.items()),
        ],
    )
    return write_bytes(folder / PAGE, page)


def _difference(difference: Difference) -> list[str | Cell]:
    *cells, verdict = tables.difference_cells(difference)
    return [*cells, Cell(verdict, _STYLES[difference.verdict])]


def _picture(file: Path) -> str:
    try:
        return data_url("image/png", file.read_bytes())
    except OSError as error:
        raise MachineError(f"cannot read {file}: {reason(error)}") from None
