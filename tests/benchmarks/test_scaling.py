"""Test the benchmark of how cost grows with the size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from benchmarks.scaling import Cell, exponents, plot

ROOT = Path(__file__).parents[2]


def cells(power):
    """Return cells whose costs are the pixels to the power of `power`, and linear in the batch."""
    points = [(64, 1), (64, 2), (64, 4), (96, 1), (128, 1)]
    return [
        Cell("m2h-tiny", side, side, batch, 1, cost * batch, cost, cost * batch, cost, cost, cost, cost)
        for side, batch in points
        for cost in [side ** (2 * power)]
    ]


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_exponents_are_those_of_the_costs(power):
    found = exponents(cells(power))
    assert found["ms over pixels"] == pytest.approx(power)
    assert found["decoder_gmacs over pixels"] == pytest.approx(power)
    assert found["peak_mb over batch"] == pytest.approx(1.0)


def test_the_plot_is_drawn(tmp_path):
    plot(cells(1.0), tmp_path / "scaling.png")
    image = cv2.imread(str(tmp_path / "scaling.png"))
    assert image is not None and image.std() > 0


@pytest.mark.slow
def test_cells_of_a_network_are_measured(tmp_path):
    arguments = ("--variants", "m2h-tiny", "--sizes", "56x56,84x56", "--threads", "1", "--runs", "1")
    done = subprocess.run(
        [sys.executable, "benchmarks/scaling.py", *arguments, "--json", tmp_path / "cells.json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    measured = json.loads((tmp_path / "cells.json").read_text())
    assert [(cell["height"], cell["width"], cell["batch"]) for cell in measured] == [
        *((56, 56, batch) for batch in (1, 2, 4, 8)),
        (56, 84, 1),
    ]
    assert min(cell["backbone_ms"] for cell in measured if cell["backbone_ms"] is not None) > 0
    assert "ms over pixels" in done.stdout
