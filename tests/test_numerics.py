"""Test that rounding is distinguished from wrong numbers, also with unstable pixels or a nearly constant output."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.numerics import BEST_PSNR, EPSILON, REALIZATIONS, judge, judge_labels, perturbed, psnr, span_of, spread
from m2h_deploy.parity.tensors import TensorComparison, tensor_sums

SHAPE = (1, 2, 64, 80)
EXACT = np.random.default_rng(0).normal(3, 1, SHAPE)


def rounded(seed: int, size: float = 1e-6) -> np.ndarray:
    return EXACT + size * np.random.default_rng(seed).standard_normal(SHAPE)


def own(index: int) -> np.ndarray:
    return rounded(100 + index)


def test_rounding_passes_and_its_size_is_reported():
    difference = judge(rounded(1), EXACT, own)
    assert difference.passed
    assert difference.mean_error == pytest.approx(difference.own_mean_error, rel=0.1)
    assert difference.outliers == 0


@pytest.mark.parametrize("size", [1e-4, 1e-2, np.nan, np.inf])
def test_a_larger_error_everywhere_fails(size):
    difference = judge(rounded(1, size), EXACT, own)
    assert not difference.passed
    assert difference.reason


def test_an_error_in_a_small_region_fails_and_in_a_single_pixel_passes():
    value = rounded(1)
    value[0, 1, 10:12, 20:22] += 1e-3
    assert judge(value, EXACT, own).passed  # four pixels
    value[0, 1, 10:17, 20:27] += 1e-3
    difference = judge(value, EXACT, own)
    assert not difference.passed
    assert difference.outliers == pytest.approx(49 / (64 * 80))


def test_the_instability_of_float32_itself_passes():
    def unstable(index: int) -> np.ndarray:
        value = own(index)
        value[:, :, 30:40, 30:40] += 1e-2 * np.random.default_rng(index).standard_normal()
        return value

    value = rounded(1)
    value[:, :, 30:40, 30:40] += 2e-2
    assert judge(value, EXACT, unstable).passed
    assert not judge(value, EXACT, own).passed
    value[:, :, 5:9, 5:9] += 2e-2  # at another place it fails
    assert not judge(value, EXACT, unstable).passed


def test_more_realizations_are_computed_only_if_the_first_one_fails():
    asked = []

    def count(index: int) -> np.ndarray:
        asked.append(index)
        return own(index)

    judge(rounded(1), EXACT, count)
    assert asked == [0]
    judge(rounded(1, 1e-3), EXACT, count)
    assert asked == [0, *range(REALIZATIONS)]


@pytest.mark.parametrize("constant", [0.0, 10.0])
def test_a_constant_output_is_judged_by_its_magnitude(constant):
    exact = np.full(SHAPE, constant)
    assert judge(exact * (1 + EPSILON), exact, lambda index: exact).passed
    assert not judge(exact * 1.001 + 1e-4, exact, lambda index: exact).passed
    assert spread(exact) == (0.25 * constant or 1.0)


def test_psnr_of_a_constant_output_is_relative_to_its_magnitude():
    """FP16 rounds 10 m to within 4 mm, which passes although the standard deviation is zero."""
    comparison = TensorComparison("depth", "m")
    exact = np.full((1, 8, 8), 10.0, np.float32)
    comparison.add(tensor_sums("depth", exact, exact + np.float32(0.004), 0))
    result = comparison.result(np.ones((1, 1)))
    assert result.psnr == pytest.approx(20 * np.log10(2.5 / 0.004), abs=0.1)
    assert psnr(0.0, 1.0) == BEST_PSNR
    assert span_of(0.0, 0.0, 0.0) == 1.0


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_psnr_of_an_output_with_nan_or_infinity_is_zero(error):
    assert psnr(error, 1.0) == 0.0


def test_labels_are_judged_by_the_share_that_rounding_changes():
    expected = np.zeros((50, 40), np.uint8)
    few, many = expected.copy(), expected.copy()
    few[0, :2], many[0, :20] = 1, 1
    assert judge_labels(few, expected, lambda index: expected).passed
    assert not judge_labels(many, expected, lambda index: expected).passed
    assert judge_labels(many, expected, lambda index: np.roll(many, index, axis=1)).passed


def test_a_perturbed_image_differs_by_rounding():
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 8), dtype=np.float32)
    assert perturbed(image, 0) is image
    other = perturbed(image, 1)
    assert 0 < np.abs(other / image - 1).max() <= 2 * EPSILON
    assert np.array_equal(other, perturbed(image, 1))
    assert not np.array_equal(other, perturbed(image, 2))
