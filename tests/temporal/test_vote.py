from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_deploy.temporal.vote import vote


def expected(history: np.ndarray, least: int) -> int:
    """The label of one pixel, by counting."""
    counts = {label: int(np.sum(history == label)) for label in set(history.tolist()) - {255}}
    present = int(history[-1])
    best = counts.get(present, 0)
    winner = present
    for label in sorted(counts, reverse=True):
        if counts[label] > best and counts[label] >= least:
            winner, best = label, counts[label]
    return winner


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
def test_equals_counting(seed: int, frames: int, least: int) -> None:
    history = np.random.default_rng(seed).choice(np.array([0, 1, 2, 40, 255], np.uint8), (frames, 5, 7))
    result = vote(history, least)
    assert result.dtype == np.uint8
    for row in range(5):
        for column in range(7):
            assert result[row, column] == expected(history[:, row, column], least)


def test_the_present_label_wins_a_tie() -> None:
    history = np.array([3, 3, 2, 2], np.uint8)[:, None, None]
    assert vote(history, 1)[0, 0] == 2
    assert vote(history[:3], 1)[0, 0] == 3
    assert vote(history[:3], 3)[0, 0] == 2
