"""Test thinning and non-maximum suppression against pixel loops and known shapes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_oracles import suppress_by_pixel, thin_by_pixel

from m2h_deploy.metrics.thinning import orientation, suppress_non_maxima, thin


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.floats(0.1, 0.95))
def test_thinning_equals_the_pixel_by_pixel_algorithm(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    assert np.array_equal(thin(mask), thin_by_pixel(mask))


def test_a_thick_bar_becomes_a_line_and_a_line_stays() -> None:
    bar = np.zeros((15, 40), bool)
    bar[5:10, 3:37] = True
    line = thin(bar)
    assert line.any(axis=0).sum() > 28
    assert line.sum(axis=0).max() == 1
    assert np.array_equal(thin(line), line)


def test_thinning_keeps_the_number_of_connected_parts() -> None:
    noise = cv2.GaussianBlur(np.random.default_rng(3).random((120, 160)), (0, 0), 3) > 0.5
    before, _ = cv2.connectedComponents(noise.astype(np.uint8), connectivity=8)
    after, _ = cv2.connectedComponents(thin(noise).astype(np.uint8), connectivity=8)
    assert after == before > 5


@pytest.mark.parametrize("seed", range(3))
def test_suppression_equals_a_pixel_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probability = cv2.GaussianBlur(rng.random((24, 31)).astype(np.float32), (0, 0), 1.5)
    angle = orientation(probability)
    expected = suppress_by_pixel(probability, angle)
    found = suppress_non_maxima(probability)
    # Float32 and float64 may resolve a tie differently, in at most one pixel of a hundred.
    assert np.count_nonzero(~np.isclose(found, expected, atol=1e-5)) <= 7
    assert (found == 0).mean() > 0.3


@pytest.mark.parametrize("degrees", [0, 30, 60, 88, 92, 120, 150])
def test_orientation_points_across_a_ridge(degrees: float) -> None:
    y, x = np.mgrid[-30:31, -30:31].astype(np.float32)
    across = np.radians(degrees)
    ridge = np.exp(-((x * np.cos(across) + y * np.sin(across)) ** 2) / 18).astype(np.float32)
    difference = abs(float(np.degrees(orientation(ridge)[30, 30])) - degrees) % 180
    assert min(difference, 180 - difference) < 13, "the formula gives arctan(tan^2), up to 12 degrees off"


def test_an_exactly_horizontal_ridge_has_no_orientation_and_is_left_to_thinning() -> None:
    # The formula multiplies by the sign of a mixed derivative, which is 0 there. Kept, because SEISM does it.
    y = np.abs(np.arange(-30, 31, dtype=np.float32))[:, None] * np.ones((1, 61), np.float32)
    ridge = np.exp(-(y**2) / 18).astype(np.float32)
    assert not orientation(ridge).any()
    assert (thin(suppress_non_maxima(ridge) > 0.5).sum(axis=0)[10:-10] == 1).all()


def test_a_ridge_is_cut_down_to_its_crest() -> None:
    y, x = np.mgrid[-30:31, -30:31].astype(np.float32)
    ridge = np.exp(-((x * 0.8 + y * 0.6) ** 2) / 18).astype(np.float32)
    kept = suppress_non_maxima(ridge) > 0.01
    assert (np.abs(x * 0.8 + y * 0.6)[kept] <= 1.5).all()
    assert kept.sum() >= 50


def test_only_the_outermost_pixels_are_lost_to_the_border() -> None:
    ones = np.ones((20, 30), np.float32)
    faded = suppress_non_maxima(ones)
    assert not faded[0].any()
    assert not faded[:, -1].any()
    assert faded[1, 10] == pytest.approx(0.2)
    assert (faded[5:-5, 5:-5] == 1).all()
    assert (suppress_non_maxima(ones, border=0) == 1).all()
