"""Progress of long work, on stderr: results alone go to stdout."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from m2h_deploy.console import CountColumn


def progress_bar(console: Console | None = None) -> Progress:
    """A Rich progress bar on stderr with a text field `note` at its end; only the first process of a group shows it.

    In a narrow terminal the note goes on in further lines, and nothing of it is cut.
    """
    return Progress(
        TextColumn("{task.description}", table_column=Column(max_width=24, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        CountColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=False)),
        console=console or Console(stderr=True),
        expand=True,
        disable=os.environ.get("RANK", "0") != "0",
    )


def losses_note(losses: Mapping[str, float]) -> str:
    """Name each loss beside its value; a line breaks only between two of them."""
    return "  ".join(f"{name}\N{NO-BREAK SPACE}{value:.3f}" for name, value in losses.items())
