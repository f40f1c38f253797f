"""Test paired differences: what is significant, what is not, and that the interval is kept."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from m2h_deploy.files.text import finite
from m2h_deploy.mapping.compare import differences
from m2h_deploy.mapping.errors import SUMS, Cells
from m2h_deploy.mapping.tables import difference_cells
from m2h_deploy.mapping.variant import Judged, Variant
from m2h_deploy.metrics import DepthMetric


def variant(errors: np.ndarray, distances: np.ndarray) -> Variant:
    """Return a variant of one frame for each of `errors` of depth, and one cell for each of `distances`."""
    truth = np.full((4, 4), 2.0)
    depth = np.array([DepthMetric().frame_state(truth + error, truth) for error in errors])
    cells = np.zeros((len(distances), len(SUMS)))
    cells[:, 0], cells[:, 1], cells[:, 2], cells[:, 3] = 1, distances, distances**2, distances < 0.05
    cells[:, 4], cells[:, 6] = 1, 1
    places = np.stack([np.arange(len(distances))] * 3, axis=1)
    judged = Judged({"mean": float(distances.mean())}, 1.0, 0.0, 0.0, Cells(places, cells))
    return Variant(len(errors), 1, {"none": judged}, {"depth": depth}, {}, {}, {})


def by_figure(first: Variant, second: Variant):
    return {difference.figure: difference for difference in differences("a", first, "b", second)}


def test_a_difference_in_all_cells_and_segments_is_significant():
    rng = np.random.default_rng(0)
    errors, distances = rng.uniform(0.1, 0.5, 20), rng.uniform(0.01, 0.04, 60)
    found = by_figure(variant(errors - 0.05, distances + 0.1), variant(errors, distances))
    assert (found["rmse"].verdict, found["rmse"].count) == ("better", 20)
    assert found["rmse"].value == pytest.approx(-0.05, abs=0.005)
    assert (found["mean"].verdict, found["mean"].count) == ("worse", 60)
    assert found["mean"].value == pytest.approx(0.1)
    assert found["precision"].verdict == "worse"
    assert found["completeness"].verdict == "equal"


def test_a_difference_of_chance_is_not_significant_and_keeps_its_interval():
    rng = np.random.default_rng(1)
    errors, distances = rng.uniform(0.1, 0.5, 20), rng.uniform(0.01, 0.2, 60)
    noisy = variant(errors + rng.normal(0, 0.05, 20), distances + rng.normal(0, 0.05, 60))
    found = by_figure(noisy, variant(errors, distances))
    for name in ("rmse", "mean"):
        low, high = found[name].interval
        assert low < 0 < high
        assert found[name].verdict == "unclear"
        cells = difference_cells(found[name])
        assert cells[-1] == "no"
        assert " to " in cells[-2]


def test_single_segments_are_inconclusive_and_equal_rows_are_equal():
    one = variant(np.array([0.1]), np.array([0.1]))
    other = variant(np.array([0.5]), np.array([0.2]))
    assert {difference.verdict for difference in by_figure(one, other).values()} >= {"unclear"}
    assert by_figure(one, other)["rmse"].interval == (-math.inf, math.inf)
    rows = variant(np.linspace(0.1, 0.2, 9), np.linspace(0.1, 0.2, 9))
    assert {difference.verdict for difference in by_figure(rows, rows).values()} == {"equal"}


def test_cells_that_only_one_map_has_count():
    many = variant(np.full(9, 0.1), np.full(30, 0.1))
    few = variant(np.full(9, 0.1), np.full(20, 0.02))
    assert by_figure(many, few)["mean"].count == 30


def test_a_variant_survives_the_journal():
    first = variant(np.linspace(0.1, 0.2, 9), np.linspace(0.1, 0.2, 7))
    first.maps["none"].figures["precision"] = math.nan
    again = Variant.from_json(json.loads(json.dumps(finite(first.to_json()))))
    assert json.dumps(again.to_json()) == json.dumps(first.to_json())
    assert by_figure(again, first)["rmse"].verdict == "equal"
