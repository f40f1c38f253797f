"""Test the robust fit and the choice by cross-validation, on depths whose error is known."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.calibration.choose import choose_correction
from m2h_deploy.calibration.fit import Correction, fit_correction, inliers
from m2h_deploy.calibration.samples import SampleList, Samples
from m2h_deploy.errors import M2HError


def made(units: int = 8, each: int = 200, scale: float = 0.8, offset: float = 0.0, noise: float = 0.08, seed: int = 0):
    """Make samples whose measured depth is `scale` times the predicted, plus `offset`, with noise by unit and pixel."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(0.6, 6.0, units * each)
    unit = np.repeat(np.arange(units), each)
    log_noise = rng.normal(0, noise, len(predicted)) + rng.normal(0, noise / 2, units)[unit]
    return Samples(predicted, (scale * predicted + offset) * np.exp(log_noise), unit, units)


def test_an_exact_correction_is_found():
    found = fit_correction(made(scale=0.7, noise=0))
    assert found.scale == pytest.approx(0.7, rel=1e-6) and found.offset == 0
    both = fit_correction(made(scale=1.3, offset=-0.2, noise=0), offset=True)
    assert (both.scale, both.offset) == (pytest.approx(1.3, rel=1e-4), pytest.approx(-0.2, abs=1e-3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [0.3, 2.5])
def test_a_fifth_of_wrong_samples_changes_the_scale_by_less_than_a_hundredth(seed, factor):
    right = made(seed=seed)
    wrong = np.random.default_rng(seed + 100).random(len(right.measured)) < 0.2
    spoiled = Samples(right.predicted, np.where(wrong, right.measured * factor, right.measured), right.unit, 8)
    assert fit_correction(spoiled).scale == pytest.approx(fit_correction(right).scale, rel=0.01)
    assert np.count_nonzero(inliers(spoiled) & wrong) == 0


@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_point_of_five_changes_the_scale_by_less_than_a_hundredth(seed):
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(1, 5, 5)
    measured = 0.8 * predicted * np.exp(rng.normal(0, 0.02, 5))
    right = Samples(predicted[1:], measured[1:], np.arange(4), 1)
    measured[0] *= 3
    assert fit_correction(Samples(predicted, measured, np.arange(5), 1)).scale == pytest.approx(
        fit_correction(right).scale, rel=0.01
    )


@pytest.mark.parametrize("seed", range(10))
def test_three_doubled_points_of_fifteen_have_no_influence(seed):
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(1, 5, 15)
    measured = 0.8 * predicted * np.exp(rng.normal(0, 0.06, 15))
    right = Samples(predicted[3:], measured[3:], np.arange(12), 1)
    measured[:3] *= 2
    found = fit_correction(Samples(predicted, measured, np.arange(15), 1)).scale
    assert found == pytest.approx(fit_correction(right).scale, rel=0.01)


def test_distances_that_are_all_alike_support_no_offset():
    rng = np.random.default_rng(0)
    predicted = np.exp(rng.normal(np.log(2.5), 0.05, 40))
    samples = Samples(predicted, rng.normal(2.0, 0.02, 40), np.repeat(np.arange(10), 4), 10)
    best = choose_correction(samples, Correction()).best
    assert best.name == "scale" and best.correction.scale == pytest.approx(0.8, rel=0.03)
    falling = Samples(predicted, 5.0 / predicted, np.repeat(np.arange(10), 4), 10)
    assert choose_correction(falling, Correction()).best.name in ("as it is", "scale")


def test_a_unit_with_many_pixels_weighs_as_much_as_one_with_few():
    few, many = made(units=1, each=20, scale=1.0, noise=0.01), made(units=1, each=2000, scale=1.05, noise=0.01)
    parts = zip((few, many, few, many), range(4), strict=True)
    joined = [(part.predicted, part.measured, np.full(len(part.unit), number)) for part, number in parts]
    samples = Samples(*(np.concatenate(arrays) for arrays in zip(*joined, strict=True)), frames=4)
    assert fit_correction(samples).scale == pytest.approx(1.05**0.5, rel=8e-3)


def test_the_correction_is_chosen_that_the_data_supports():
    assert choose_correction(made(scale=1.0), Correction()).best.name == "as it is"
    scaled = choose_correction(made(scale=0.8), Correction())
    assert scaled.best.name == "scale" and scaled.best.abs_rel < scaled.candidates[0].abs_rel / 2
    shifted = choose_correction(made(scale=0.8, offset=0.4, noise=0.03), Correction())
    assert shifted.best.name == "scale and offset"
    assert choose_correction(made(scale=0.8), scaled.best.correction).best.name == "as it is"


def test_noise_alone_is_hardly_ever_corrected():
    kept = [choose_correction(made(units=8, scale=1.0, seed=seed), Correction()).best.name for seed in range(60)]
    assert kept.count("as it is") >= 54


def test_a_correction_never_gives_negative_depth():
    near = Samples(np.array([0.05, 1.0, 2.0, 3.0]), np.array([0.001, 0.7, 1.7, 2.7]), np.arange(4), 1)
    found = fit_correction(near, offset=True)
    assert (found.scale * near.predicted + found.offset > 0).all()


def test_predictions_at_the_end_of_the_range_are_left_out():
    found = SampleList((0.0, 10.0))
    for unit in range(3):
        found.add(np.array([0.0, 2.0, 10.0], np.float32), np.array([1.0, 2.0, 14.0]), unit)
    samples = found.samples(3, "frames")
    assert samples.left_out == 6 and samples.predicted.tolist() == [2.0, 2.0, 2.0]


def test_too_few_units_are_refused():
    found = SampleList((0.0, 10.0))
    found.add(np.ones(100), np.ones(100), 0)
    with pytest.raises(M2HError, match="frames: 1 usable, at least 3 are needed"):
        found.samples(1, "frames")
