"""Test angular error: another formula, its precision, the median's bound, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import NormalsMetric
from m2h_deploy.metrics.normals import MEDIAN_BIN, angles_between


def angle_of(first: np.ndarray, second: np.ndarray) -> float:
    """Return the angle in degrees, from the chord between unit vectors."""
    a = [float(x) / math.hypot(*map(float, first)) for x in first]
    b = [float(x) / math.hypot(*map(float, second)) for x in second]
    minus, plus = math.dist(a, b), math.hypot(*(x + y for x, y in zip(a, b, strict=True)))
    return math.degrees(2 * math.atan2(minus, plus))


def random_frames(seed: int, shape: tuple[int, ...] = (9, 8)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.standard_normal((*shape, 3))
    target /= np.linalg.norm(target, axis=-1, keepdims=True)
    target[rng.random(shape) < 0.2] = 0
    prediction = target + rng.standard_normal(target.shape) * rng.uniform(0.05, 1)
    return prediction.astype(np.float32), target.astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_figures_equal_a_pixel_loop(seed: int) -> None:
    prediction, target = random_frames(seed)
    metric = NormalsMetric()
    metric.update(prediction, target)
    pairs = zip(prediction.reshape(-1, 3), target.reshape(-1, 3), strict=True)
    angles = sorted(angle_of(p, t) for p, t in pairs if t.any())
    figures = metric.compute()
    n = len(angles)
    assert figures["mean"] == pytest.approx(math.fsum(angles) / n, rel=1e-10)
    assert figures["rmse"] == pytest.approx(math.sqrt(math.fsum(a * a for a in angles) / n), rel=1e-10)
    assert abs(figures["median"] - angles[(n - 1) // 2]) <= MEDIAN_BIN
    for limit in (11.25, 22.5, 30):
        assert figures[f"within_{limit:g}"] == sum(a <= limit for a in angles) / n


@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 45.0, 90.0, 180 - 1e-5])
def test_tiny_and_near_opposite_angles_are_precise(degrees: float) -> None:
    turn = math.radians(degrees)
    angle = angles_between(np.array([[1.0, 0, 0]]), np.array([[3 * math.cos(turn), 3 * math.sin(turn), 0]]))
    assert math.degrees(angle[0]) == pytest.approx(degrees, rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_length_of_vectors_has_no_effect(seed: int, of_prediction: float, of_target: float) -> None:
    prediction, target = (frame.astype(np.float64) for frame in random_frames(seed, (3, 3)))
    one, other = NormalsMetric(), NormalsMetric()
    one.update(prediction, target)
    other.update(prediction * of_prediction, target * of_target)
    if one.state[0]:
        assert other.compute()["mean"] == pytest.approx(one.compute()["mean"], abs=1e-9)


def test_a_perfect_prediction_has_no_error() -> None:
    _, target = random_frames(0)
    metric = NormalsMetric()
    metric.update(target, target)
    assert metric.compute()["mean"] == pytest.approx(0, abs=1e-6)
    assert metric.compute()["within_11.25"] == 1.0


def test_a_prediction_without_direction_is_90_degrees_off() -> None:
    metric = NormalsMetric()
    metric.update(np.zeros((1, 1, 3)), np.array([[[0, 0, 1.0]]]))
    assert metric.compute()["mean"] == pytest.approx(90, abs=1e-12)


def test_unknown_normals_are_left_out() -> None:
    metric = NormalsMetric()
    metric.update(np.ones((2, 2, 3)), np.zeros((2, 2, 3)))
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (np.ones((2, 2, 3), int), np.ones((2, 2, 3)), "int64"),
        (np.ones((2, 2)), np.ones((2, 2)), "(H, W, 3)"),
        (np.ones((3, 2, 2)), np.ones((3, 2, 2)), "(H, W, 3)"),
        (np.ones((2, 1, 3)), np.ones((2, 2, 3)), "(2, 1, 3)"),
        (np.full((1, 1, 3), np.nan), np.ones((1, 1, 3)), "3 nan"),
    ],
)
def test_bad_input_gives_a_one_line_error(prediction: np.ndarray, target: np.ndarray, says: str) -> None:
    with pytest.raises(M2HError) as error:
        NormalsMetric().update(prediction, target)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
