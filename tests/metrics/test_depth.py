"""Test depth metrics: a pixel loop, pooling, invalid pixels, clamping, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import DepthMetric


def by_pixel(pairs: list[tuple[float, float]]) -> dict[str, float]:
    n = len(pairs)
    factors = [max(p / t, t / p) for p, t in pairs]
    return {
        "rmse": math.sqrt(math.fsum((p - t) ** 2 for p, t in pairs) / n),
        "mae": math.fsum(abs(p - t) for p, t in pairs) / n,
        "abs_rel": math.fsum(abs(p - t) / t for p, t in pairs) / n,
        "log_rmse": math.sqrt(math.fsum(math.log(p / t) ** 2 for p, t in pairs) / n),
        "delta1": sum(f < 1.25 for f in factors) / n,
        "delta2": sum(f < 1.25**2 for f in factors) / n,
        "delta3": sum(f < 1.25**3 for f in factors) / n,
    }


@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_a_pixel_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 9, (3, 11, 7)).astype(np.float32)
    target[rng.random(target.shape) < 0.3] = 0
    prediction = (target * rng.lognormal(0, 0.3, target.shape) + 0.1).astype(np.float32)
    metric = DepthMetric()
    metric.update(prediction, target)
    pairs = [(float(p), float(t)) for p, t in zip(prediction.ravel(), target.ravel(), strict=True) if t > 0]
    assert metric.compute() == pytest.approx(by_pixel(pairs), rel=1e-12)


def test_rmse_is_pooled_over_pixels_not_averaged_over_images() -> None:
    metric = DepthMetric()
    metric.update(np.full((1, 4), 3.0), np.array([[1.0, 0, 0, 0]]))
    metric.update(np.full((1, 4), 1.0), np.array([[1.0, 1, 1, 0]]))
    metric.update(np.full((1, 4), 1.0), np.ones((1, 4)))
    assert metric.compute()["rmse"] == pytest.approx(math.sqrt(4 / 8)), "the mean of per-image RMSE is 2/3"


def test_a_perfect_prediction_has_no_error() -> None:
    target = np.linspace(0, 10, 12).reshape(3, 4)
    metric = DepthMetric()
    metric.update(target, target)
    figures = metric.compute()
    assert [figures[k] for k in ("rmse", "mae", "abs_rel", "log_rmse")] == [0, 0, 0, 0]
    assert [figures[k] for k in ("delta1", "delta2", "delta3")] == [1, 1, 1]


def test_pixels_of_unknown_depth_have_no_effect() -> None:
    target = np.array([[2.0, 0.0]])
    one, other = DepthMetric(), DepthMetric()
    one.update(np.array([[2.5, 0.0]]), target)
    other.update(np.array([[2.5, 99.0]]), target)
    assert np.array_equal(one.state, other.state)


def test_a_frame_without_valid_depth_gives_nan_and_does_not_affect_others() -> None:
    metric = DepthMetric()
    metric.update(np.ones((2, 2)), np.zeros((2, 2)))
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(np.full((2, 2), 3.0), np.ones((2, 2)))
    assert metric.compute()["rmse"] == 2.0


def test_clamping_limits_predictions_only() -> None:
    target = np.array([[12.0, 5.0, 1.0]])
    metric = DepthMetric(clamp=(1e-3, 10.0))
    metric.update(np.array([[15.0, 5.0, -3.0]]), target)
    assert metric.compute()["mae"] == pytest.approx((2 + 0 + 0.999) / 3)


def test_a_negative_prediction_fails_every_delta_and_keeps_the_log_finite() -> None:
    metric = DepthMetric()
    metric.update(np.array([[-1.0]]), np.array([[1.0]]))
    figures = metric.compute()
    assert figures["rmse"] == 2.0
    assert figures["delta3"] == 0.0
    assert figures["log_rmse"] == pytest.approx(-math.log(1e-9))


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (np.ones((2, 2), int), np.ones((2, 2)), "prediction has dtype int64"),
        (np.ones((2, 2)), np.ones((2, 2), np.uint16), "target has dtype uint16"),
        (np.ones((2, 3)), np.ones((2, 2)), "(2, 3)"),
        (np.ones((2, 2, 2)), np.ones((3, 2, 2)), "(3, 2, 2)"),
        (np.ones(4), np.ones(4), "(4,)"),
        (np.full((2, 2), np.nan), np.ones((2, 2)), "prediction has 4 nan"),
        (np.ones((2, 2)), np.full((2, 2), np.inf), "target has 4 nan"),
        (np.ones((2, 2)), np.full((2, 2), -1.0), "-1 m"),
    ],
)
def test_bad_input_gives_a_one_line_error_and_adds_nothing(
    prediction: np.ndarray, target: np.ndarray, says: str
) -> None:
    metric = DepthMetric()
    with pytest.raises(M2HError) as error:
        metric.update(prediction, target)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not metric.state.any()


@pytest.mark.parametrize("clamp", [(0.0, 10.0), (5.0, 1.0), (1.0, float("inf")), (float("nan"), 1.0)])
def test_an_invalid_clamp_is_refused(clamp: tuple[float, float]) -> None:
    with pytest.raises(M2HError, match="clamp"):
        DepthMetric(clamp=clamp)
