"""Test that the bootstrap's intervals have about their nominal coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.metrics import DepthMetric
from m2h_deploy.metrics.bootstrap import FEW_FRAMES, draws, interval, resample


def depth_states(generator: np.random.Generator, frames: int, error: float) -> np.ndarray:
    """Return states of frames whose squared error varies between frames around `error` squared."""
    metric = DepthMetric()
    truth = np.full((4, 4), 2.0)
    scales = error * np.sqrt(generator.gamma(4.0, 0.25, frames))
    return np.array([metric.frame_state(truth + scale, truth) for scale in scales])


@pytest.mark.parametrize("frames", [FEW_FRAMES, 30])
def test_95_percent_intervals_of_rmse_have_about_that_coverage(frames):
    metric, generator = DepthMetric(), np.random.default_rng(3)
    weights = draws(frames, resamples=200)
    hits = 0
    for _ in range(200):
        states = depth_states(generator, frames, error=0.5)
        point = metric.compute_from(states.sum(axis=0))["rmse"]
        low, high = interval(point, resample(weights, states, lambda s: metric.compute_from(s)["rmse"]), frames)
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 200 <= 0.995


def test_fewer_frames_give_a_wider_interval_from_the_same_samples():
    samples = np.random.default_rng(0).standard_normal(20000)
    widths = [high - low for low, high in (interval(0.0, samples, frames) for frames in (2, 4, 10, 1000))]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2 * 1.96, rel=0.05)


def test_the_interval_of_two_frames_spans_their_values():
    states = np.array([[1.0], [3.0]])
    assert interval(2.0, resample(draws(2), states, lambda total: total[0] / 2), 2) == (1.0, 3.0)


def test_equal_frames_have_no_uncertainty_and_one_frame_has_no_interval():
    assert interval(0.25, np.full(100, 0.25), 2) == (0.25, 0.25)
    assert interval(0.25, np.full(100, 0.25), 1) == (-math.inf, math.inf)


def test_resamples_have_the_size_of_the_data_and_are_reproducible():
    weights = draws(7, resamples=50)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == draws(7, resamples=50)).all()
