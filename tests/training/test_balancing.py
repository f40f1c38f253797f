"""Test dynamic weight averaging."""

from __future__ import annotations

import math

import pytest

from m2h_deploy.training.balancing import LossHistory, task_weights

TASKS = ("depth", "semantics", "normals", "edges")


def history(*periods: tuple[float, float, float, float]) -> LossHistory:
    result = LossHistory()
    for losses in periods:
        result = result.after(dict(zip(TASKS, losses, strict=True)))
    return result


@pytest.mark.parametrize("periods", [[], [(1.0, 2.0, 3.0, 4.0)]])
def test_weights_are_equal_until_two_periods_have_passed(periods: list) -> None:
    assert task_weights(history(*periods), TASKS) == dict.fromkeys(TASKS, 1.0)


def test_weights_follow_equation_18() -> None:
    weights = task_weights(history((2.0, 1.0, 1.0, 4.0), (1.0, 1.0, 2.0, 4.0)), TASKS)
    # r = 0.5, 1, 2, 1 and T = 2.
    terms = [math.exp(r / 2) for r in (0.5, 1.0, 2.0, 1.0)]
    assert list(weights.values()) == pytest.approx([4 * term / sum(terms) for term in terms])
    assert sum(weights.values()) == pytest.approx(4)


def test_only_the_last_two_periods_count() -> None:
    long = history((9.0, 9.0, 9.0, 9.0), (2.0, 1.0, 1.0, 4.0), (1.0, 1.0, 2.0, 4.0))
    short = history((2.0, 1.0, 1.0, 4.0), (1.0, 1.0, 2.0, 4.0))
    assert task_weights(long, TASKS) == task_weights(short, TASKS)


def test_a_task_without_labels_keeps_an_ordinary_weight() -> None:
    weights = task_weights(history((1.0, 1.0, 1.0, 0.0), (1.0, 1.0, 1.0, 0.0)), TASKS)
    assert weights == pytest.approx(dict.fromkeys(TASKS, 1.0))


def test_an_exploding_loss_gives_finite_weights() -> None:
    weights = task_weights(history((1e-9, 1.0, 1.0, 1.0), (1e9, 1.0, 1.0, 1.0)), TASKS)
    assert all(math.isfinite(value) for value in weights.values())
    assert weights["depth"] == pytest.approx(4)
