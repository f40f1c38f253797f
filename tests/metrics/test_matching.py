"""Test that every matching is the optimum of the benchmark's assignment problem."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_oracles import match_with_outliers

from m2h_deploy.metrics.matching import BoundaryMatcher


def count(target: np.ndarray, prediction: np.ndarray, radius: float) -> int:
    """Count the pairs of a single prediction."""
    return BoundaryMatcher(target, prediction, radius).count(prediction[prediction])


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    shares=st.tuples(st.floats(0.02, 0.6), st.floats(0.02, 0.6)),
    radius=st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.7, 5.0]),
)
def test_the_count_is_optimal_for_every_prediction_of_a_changing_sequence(
    seed: int, size: tuple[int, int], shares: tuple[float, float], radius: float
) -> None:
    rng = np.random.default_rng(seed)
    target = rng.random(size) < shares[0]
    strength = rng.random(size)
    # Growing sets, as from descending thresholds, in which some pixels appear and disappear, as by thinning.
    predictions = [
        (strength < shares[1] * step / 6) & (rng.random(size) < 0.9) if step < 7 else rng.random(size) < shares[1]
        for step in range(1, 9)
    ]
    candidates = np.logical_or.reduce(predictions)
    matcher = BoundaryMatcher(target, candidates, radius)
    found = [matcher.count(prediction[candidates]) for prediction in predictions]
    assert found == [match_with_outliers(prediction, target, radius) for prediction in predictions]


def test_greedy_pairs_are_undone_where_that_matches_more() -> None:
    target = np.zeros((1, 6), bool)
    prediction = np.zeros((1, 6), bool)
    target[0, [1, 3]] = True
    prediction[0, [3, 4]] = True
    # Nearest first pairs 3 with 3 and leaves 4 and 1 alone; 3 with 1 and 4 with 3 pairs both.
    assert count(target, prediction, 2.0) == 2


def test_a_long_chain_of_displaced_pairs_is_found() -> None:
    target = np.zeros((1, 400), bool)
    prediction = np.zeros((1, 400), bool)
    target[0, 0:398:2] = True
    prediction[0, 2:400:2] = True
    assert count(target, prediction, 2.0) == 199


@pytest.mark.parametrize("empty", ["target", "prediction", "both"])
def test_nothing_to_match_counts_zero(empty: str) -> None:
    full, none = np.ones((4, 4), bool), np.zeros((4, 4), bool)
    target = none if empty in ("target", "both") else full
    prediction = none if empty in ("prediction", "both") else full
    assert count(target, prediction, 2.0) == 0
