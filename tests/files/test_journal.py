"""Test that a journal keeps values of the same settings only, and survives a line that was cut off."""

from __future__ import annotations

import json

from m2h_deploy.files.journal import Journal


def test_a_journal_ignores_a_line_that_was_cut_off_and_values_of_other_settings(tmp_path):
    journal = Journal(tmp_path / "j", "a")
    assert journal.once("x", lambda: {"value": float("nan")}) == {"value": None}
    with (tmp_path / "j").open("a") as file:
        file.write('\n{"settings": "a", "key": "cut", "va')
    again = Journal(tmp_path / "j", "a")
    assert "x" in again
    assert "cut" not in again
    assert again.once("y", lambda: 2) == 2
    assert [json.loads(line)["key"] for line in (tmp_path / "j").read_text().splitlines() if line.endswith("}")] == [
        "x",
        "y",
    ]
    assert "x" not in Journal(tmp_path / "j", "b")


def test_a_value_that_was_forgotten_is_measured_again_by_this_run_and_by_later_ones(tmp_path):
    journal = Journal(tmp_path / "j", "a")
    assert journal.once("x", lambda: 1) == 1
    journal.forget("x")
    assert (journal.get("x"), "x" in Journal(tmp_path / "j", "a")) == (None, False)
    assert journal.once("x", lambda: 2) == 2
    assert Journal(tmp_path / "j", "a").once("x", lambda: 3) == 2
