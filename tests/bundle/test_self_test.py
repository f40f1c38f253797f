"""Test that the self-test distinguishes rounding from a broken engine, also for nearly constant outputs."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy import CheckFailed, M2HError
from m2h_deploy.bundle.self_test import check_self_test, make_self_test


def outputs(mean: float, deviation: float) -> dict[str, np.ndarray]:
    return {"edges": np.random.default_rng(0).normal(mean, deviation, (1, 1, 112, 140)).astype(np.float32)}


@pytest.mark.parametrize(("mean", "deviation"), [(0.04, 0.0016), (0.04, 0.0), (2.0, 1e-4), (0.0, 1.0)])
def test_rounding_to_half_passes_also_on_untrained_weights(mean, deviation):
    expected = outputs(mean, deviation)
    rounding = {name: value * np.float32(1 + 1.6e-3) for name, value in expected.items()}
    check_self_test(make_self_test(expected, expected), rounding)


@pytest.mark.parametrize("deviation", [0.0016, 0.5])
def test_wrong_numbers_fail(deviation):
    expected = outputs(0.04, deviation)
    test = make_self_test(expected, expected)
    for wrong in (expected["edges"] * 0, -expected["edges"], expected["edges"] * np.nan):
        with pytest.raises(CheckFailed, match="edges is off by"):
            check_self_test(test, {"edges": wrong})


def test_the_error_of_a_low_precision_suggests_fp32():
    expected = outputs(0.04, 1.0)
    wrong = {"edges": expected["edges"] + 1}
    with pytest.raises(CheckFailed, match=r"computes wrong numbers on this machine; see"):
        check_self_test(make_self_test(expected), wrong)
    with pytest.raises(CheckFailed, match="or int8 is too coarse for this network; build with --precision fp32"):
        check_self_test(make_self_test(expected, expected), wrong, "int8")


def test_the_tolerance_depends_on_the_precision():
    """The tolerance is four times the error of the rounded graph, and below that of a broken engine."""
    expected = outputs(0.0, 1.0)
    off = {factor: {"edges": expected["edges"] + np.float32(factor)} for factor in (0.1, 0.3, 0.45, 0.6)}
    test = make_self_test(expected, off[0.1])
    assert test.tolerance_of("edges") == pytest.approx(0.4, rel=0.1)
    check_self_test(test, off[0.3])
    with pytest.raises(CheckFailed):
        check_self_test(test, off[0.45])
    with pytest.raises(M2HError, match="build with --precision fp32"):
        make_self_test(expected, off[0.6])


def test_a_few_unstable_values_pass_and_nan_fails():
    expected = outputs(0.0, 1.0)
    places = np.linspace(0, expected["edges"].size - 1, 64).astype(int)
    unstable = expected["edges"].copy()
    unstable.reshape(-1)[places[:4]] += 100
    check_self_test(make_self_test(expected), {"edges": unstable})
    unstable.reshape(-1)[places[4]] += 100
    with pytest.raises(CheckFailed):
        check_self_test(make_self_test(expected), {"edges": unstable})
    broken = expected["edges"].copy()
    broken.reshape(-1)[places[0]] = np.nan
    with pytest.raises(CheckFailed):
        check_self_test(make_self_test(expected), {"edges": broken})
