"""Test what the command line shows: progress of a training run, warnings of the library."""

from __future__ import annotations

import io
import logging
import re
import time

import pytest
from rich.console import Console

from cli import console
from cli.console import show_log, status, training_progress
from m2h_deploy.training.progress import losses_note


def test_the_training_line_fits_80_columns() -> None:
    stream = io.StringIO()
    losses = {"depth": 12.345, "semantics": 1.234, "normals": 0.123, "edges": 0.012}
    with training_progress(Console(file=stream, width=80, force_terminal=True)) as show:
        show("fine-tuning", 10000, 12000, losses_note(losses))
    shown = stream.getvalue()
    for name, value in losses.items():
        assert f"{name}\N{NO-BREAK SPACE}{value:.3f}" in shown
    assert "fine-tuning" in shown and "10000/12000" in shown and "…" not in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80


def test_a_counter_without_a_total_shows_no_question_mark() -> None:
    stream = io.StringIO()
    with training_progress(Console(file=stream, width=80, force_terminal=True)) as show:
        show("evaluation", 8, None, "")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert " 8 " in shown and "?" not in shown


def test_only_the_first_of_torchruns_processes_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    stream = io.StringIO()
    with training_progress(Console(file=stream, width=80, force_terminal=True)) as show:
        show("evaluation", 8, 9, "")
    assert stream.getvalue() == ""


def test_warnings_are_lines_and_progress_is_shown_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logger = logging.getLogger("m2h_deploy")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    show_log()
    for terminal in (False, True):
        stream = io.StringIO()
        monkeypatch.setattr(console, "err", Console(file=stream, width=80, force_terminal=terminal, highlight=False))
        with status("building"):
            logging.getLogger("m2h_deploy.engines").info("frame 1 of 2")
            time.sleep(0.3)  # the status is drawn several times a second
            logging.getLogger("m2h_deploy.engines").warning("no space in the cache [x]")
        assert "no space in the cache [x]" in stream.getvalue()
        assert ("building: frame 1 of 2" in stream.getvalue()) == terminal
