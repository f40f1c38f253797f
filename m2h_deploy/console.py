"""What the commands print: results on stdout, progress and everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

#: Columns of what goes to a file or another program: nothing is cut that a program may read.
_PIPED = 1000


def _piped_width() -> int | None:
    """Rich takes 80 columns where there is no terminal, and cuts tables to them."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed
    return None if terminal or "COLUMNS" in os.environ else _PIPED


out = Console(highlight=False, width=_piped_width())
err = Console(stderr=True, highlight=False)


class CountColumn(ProgressColumn):
    """How many are done, `8/20`; `8` where the total is unknown."""

    def render(self, task: Task) -> Text:
        done = int(task.completed)
        return Text(str(done) if task.total is None else f"{done}/{int(task.total)}", style="progress.download")


def make_progress() -> Progress:
    """A progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), CountColumn(), TimeElapsedColumn())
    return Progress(SpinnerColumn(), *columns, console=err)


def say(text: str, style: str | None = None) -> None:
    """One line on stderr, never wrapped and never read as markup."""
    err.print(text, style=style, markup=False, soft_wrap=True)


def print_json(values: Any) -> None:
    """Plain values as one line of JSON on stdout, at once: a command may go on, and its reader waits for the line.

    A number that JSON has not is a mistake of the caller's.
    """
    print(json.dumps(values, allow_nan=False), flush=True)


def print_values(values: dict[str, Any]) -> None:
    """Nested values, one to a line, on stdout; what is too long for a terminal's line is cut."""
    table = Table(show_header=False, box=None)
    for key, value in _flatten(values):
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), Text(text[:77] + "…" if len(text) > 78 and sys.stdout.isatty() else text))
    out.print(table)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows


def timing_summary(timings: list[dict[str, float]]) -> dict[str, Any]:
    """Frames, mean milliseconds of each stage, frames a second; the first frame warms up and counts only alone."""
    steady = timings[1:] or timings
    if not steady:
        return {"frames": 0}
    means = {f"{stage}_ms": sum(t[stage] for t in steady) / len(steady) for stage in steady[0]}
    return {"frames": len(timings), **means, "frames_per_second": 1000 / sum(means.values())}
