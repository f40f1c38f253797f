"""What the commands print: results on stdout, progress and everything else on stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from m2h_deploy.files.atomic import write_text
from m2h_deploy.files.text import finite
from m2h_deploy.version import __version__

#: Columns of what goes to a file or another program: nothing is cut that a program may read.
_PIPED = 1000


def _piped_width() -> int | None:
    """Rich takes 80 columns where there is no terminal, and cuts tables to them."""
    terminal = sys.stdout is not None and sys.stdout.isatty()  # None: closed
    return None if terminal or "COLUMNS" in os.environ else _PIPED


out = Console(highlight=False, width=_piped_width())
err = Console(stderr=True, highlight=False)


class CountColumn(ProgressColumn):
    """Show how many are done, `8/20`; `8` where the total is unknown."""

    def render(self, task: Task) -> Text:
        """Return the count of one task."""
        done = int(task.completed)
        return Text(str(done) if task.total is None else f"{done}/{int(task.total)}", style="progress.download")


def make_progress() -> Progress:
    """Return a progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), CountColumn(), TimeElapsedColumn())
    return Progress(SpinnerColumn(), *columns, console=err)


@contextmanager
def training_progress(console: Console = err) -> Iterator[Callable[[str, int, int | None, str], None]]:
    """Show what a training reports as bars on stderr; of processes that torchrun started, only the first shows it.

    In a narrow terminal the note goes on in further lines, and nothing of it is cut.
    """
    columns = (
        TextColumn("{task.description}", table_column=Column(max_width=24, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        CountColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(ratio=1, no_wrap=False)),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, expand=True, disable=not leads()) as bar:

        def show(what: str, done: int, total: int | None, note: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total, note=note)
            bar.update(tasks[what], completed=done, note=note)
            if done == total:
                del tasks[what]  # the same work may begin again

        yield show


def leads() -> bool:
    """Return whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class _Lines(logging.Handler):
    """Log records of the library as lines on stderr: warnings always, progress as a status where it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.show: Callable[[str], None] | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, or show progress where a status is on."""
        if record.levelno >= logging.WARNING:
            say(record.getMessage(), "yellow")
        elif self.show is not None:
            self.show(record.getMessage())


_lines = _Lines()


def show_log() -> None:
    """Show the library's warnings on stderr from now on."""
    logger = logging.getLogger("m2h_deploy")
    logger.propagate = False
    logger.addHandler(_lines)


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show `text`, and after it what the library logs about its progress, where stderr is a terminal."""
    logger = logging.getLogger("m2h_deploy")
    with err.status(text) as shown:
        _lines.show = lambda message: shown.update(f"{text}: {escape(message)}")
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            _lines.show = None
            logger.setLevel(logging.NOTSET)


def say(text: str, style: str | None = None) -> None:
    """Print one line on stderr, never wrapped and never read as markup."""
    err.print(text, style=style, markup=False, soft_wrap=True)


#: Where results go instead of stdout.
_json_file: Path | None = None


def send_json_to(file: Path | None) -> None:
    """Let `print_json` write to a file from now on; None is stdout."""
    global _json_file
    _json_file = file


def print_json(values: dict[str, Any]) -> None:
    """Print a result as one line of JSON on stdout, at once: the command may go on while its reader waits.

    NaN and infinity, which JSON lacks, become null.
    """
    if _json_file is None:
        print(json.dumps(finite(values)), flush=True)
    else:
        marked = {"tool": f"m2h-deploy {__version__}"} | values  # by which a later command knows the file as its own
        write_text(_json_file, json.dumps(finite(marked), indent=2))


def print_values(values: dict[str, Any]) -> None:
    """Print nested values on stdout, one to a line; what is too long for a terminal's line is cut."""
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
