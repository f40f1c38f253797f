"""Test that gates are judged by the whole interval."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.bootstrap import draws, interval, resample
from m2h_deploy.parity.gates import Gates, Rule, frames_needed, judge

LOSS = Rule("semantics.miou_drop", "semantics", "semantics mIoU drop", "points")
PSNR = Rule("depth.psnr", "depth", "depth PSNR", "dB", at_least=True)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((-0.2, 0.4), "pass"), ((0.1, 0.6), "unsure"), ((0.6, 0.9), "fail"), ((-math.inf, math.inf), "unsure")],
)
def test_a_loss_passes_only_when_the_whole_interval_is_below_the_limit(interval, verdict):
    assert judge(LOSS, 0.5, 0.3, interval).verdict == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"), [((31.0, 40.0), "pass"), ((29.0, 40.0), "unsure"), ((20.0, 29.0), "fail")]
)
def test_psnr_passes_only_when_the_whole_interval_is_above_the_limit(interval, verdict):
    assert judge(PSNR, 30.0, 30.5, interval).verdict == verdict


def test_a_value_equal_to_the_limit_fails():
    assert judge(LOSS, 0.5, 0.5, (0.5, 0.5)).verdict == "fail"


def test_an_inconclusive_gate_estimates_how_many_frames_are_enough():
    gate = judge(LOSS, 0.5, 0.4, (0.1, 0.7), frames=20)
    assert gate.frames_needed == 180  # the half width, 0.3, must fall to a third
    assert "too few frames to tell, about 180 are likely to be enough" in gate.message
    worse = judge(LOSS, 0.5, 0.6, (0.4, 0.9), frames=20)  # below the value it is 0.2 wide
    assert worse.frames_needed == 80
    assert judge(PSNR, 30.0, 31.0, (29.0, 40.0), frames=10).frames_needed == 40
    assert judge(LOSS, 0.5, 0.3, (-0.2, 0.4), frames=20).frames_needed is None


@pytest.mark.parametrize(
    ("value", "interval", "frames", "needed"),
    [
        (0.3, (-math.inf, math.inf), 1, 8),  # one frame has no interval
        (0.3, (0.0, 0.51), 2, 8),  # few frames have no reliable interval
        (0.5, (0.0, 1.0), 100, None),  # the limit itself
        (0.4999, (0.0, 0.6), 654, 660_000_000),
        (0.3, (0.1, 0.5), 30, 31),
    ],
)
def test_the_estimate_exceeds_the_measured_frames_and_has_two_digits(value, interval, frames, needed):
    found = frames_needed(0.5, value, interval, frames)
    assert found == needed if needed is None else math.isclose(found, needed, rel_tol=0.02)


def test_with_the_estimated_frames_the_interval_ends_at_the_limit():
    """For a normal distribution of known width, half of the interval then equals the distance to the limit."""
    generator = np.random.default_rng(0)
    ratios = []
    for _ in range(30):
        frames = generator.normal(0.4, 1.0, 60)
        mean = frames.mean()
        found = interval(mean, resample(draws(60, 400), frames[:, None], lambda total: total[0] / 60), 60)
        needed = frames_needed(0.6, mean, found, 60)
        ratios.append(1.96 / math.sqrt(needed) / abs(0.6 - mean))
    assert 0.85 < np.median(ratios) < 1.1


def test_a_gate_without_measurements_does_not_pass():
    gate = judge(LOSS, 0.5, math.nan, (math.nan, math.nan))
    assert gate.verdict == "unsure"
    assert "nothing to measure" in gate.message


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf])
def test_an_invalid_limit_is_refused(limit):
    with pytest.raises(M2HError, match="gate rmse_increase"):
        Gates(rmse_increase=limit)
