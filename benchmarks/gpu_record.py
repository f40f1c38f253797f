"""Rows of the GPU benchmark: printed, and written to a JSON file, as soon as each is measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_timing import Times
from m2h_deploy.errors import first_line
from m2h_deploy.files.atomic import write_text

HEADER = (
    "| network | way | queued ms | single-shot ms | p99 | frame ms | image ms | roofline ms | note |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---|"
)


@dataclass(frozen=True)
class Row:
    """One way to run a cell, or the reason why it was not run."""

    cell: str
    way: str
    queued_ms: float | None = None
    single_ms: float | None = None
    single_p99_ms: float | None = None
    frame_ms: float | None = None
    image_ms: float | None = None
    roofline_ms: float | None = None
    note: str = ""

    @classmethod
    def of(cls, cell: object, way: str, times: Times | None, **rest: Any) -> Row:
        """Make the row of a measured way; None: it has no times of the device."""
        figures = (times.queued, times.single, times.single_p99) if times is not None else ()
        return cls(str(cell), way, *figures, **rest)

    def line(self) -> str:
        """Format the row as a line of the Markdown table."""
        figures = (self.queued_ms, self.single_ms, self.single_p99_ms, self.frame_ms, self.image_ms, self.roofline_ms)
        cells = [self.cell, self.way, *("" if value is None else f"{value:.3f}" for value in figures), self.note]
        return "| " + " | ".join(cells) + " |"


def attempt(cell: object, way: str, measure: Callable[[], Row]) -> Row:
    """Return the row that `measure` makes, or a row with the reason why it fails."""
    try:
        return measure()
    except Exception as error:  # errors of compilers, engines and CUDA share no base type
        return Row(str(cell), way, note=first_line(error)[:200])


def guarded(cell: object, way: str, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield `rows`, and if they fail, such as by a failed build, a row with the reason."""
    try:
        yield from rows
    except Exception as error:  # as in `attempt`
        yield Row(str(cell), way, note=first_line(error)[:200])


class Record:
    """The rows so far, and the machine's sensors before the first and after the latest row."""

    def __init__(self, about: dict[str, Any], sensors: Callable[[], dict[str, float]], path: Path | None) -> None:
        self._sensors, self._path = sensors, path
        self._values: dict[str, Any] = {"about": about, "before": sensors(), "after": {}, "rows": []}
        print(f"{json.dumps({'about': about, 'before': self._values['before']})}\n\n{HEADER}", flush=True)

    def add(self, row: Row) -> None:
        """Print the row and replace the JSON file."""
        print(row.line(), flush=True)
        self._values["rows"].append(asdict(row))
        self._values["after"] = self._sensors()
        if self._path is not None:
            write_text(self._path, json.dumps(self._values, indent=2))

    def finish(self) -> None:
        """Print the sensors after the last row."""
        print("\n" + json.dumps({"after": self._values["after"]}))
