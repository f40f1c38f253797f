"""The golden self-test tells rounding from a broken engine, also where outputs hardly vary."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy import CheckFailed
from m2h_deploy.selftest import check_self_test, make_self_test


def outputs(mean: float, deviation: float) -> dict[str, np.ndarray]:
    return {"edges": np.random.default_rng(0).normal(mean, deviation, (1, 1, 112, 140)).astype(np.float32)}


@pytest.mark.parametrize(("mean", "deviation"), [(0.04, 0.0016), (0.04, 0.0), (2.0, 1e-4), (0.0, 1.0)])
def test_rounding_to_half_passes_also_on_untrained_weights(mean, deviation):
    expected = outputs(mean, deviation)
    rounding = {name: value * np.float32(1 + 1.6e-3) for name, value in expected.items()}
    check_self_test(make_self_test(expected, "fp16"), rounding)


@pytest.mark.parametrize("deviation", [0.0016, 0.5])
def test_wrong_numbers_fail(deviation):
    expected = outputs(0.04, deviation)
    test = make_self_test(expected, "fp16")
    for wrong in (expected["edges"] * 0, -expected["edges"], expected["edges"] * np.nan):
        with pytest.raises(CheckFailed, match="edges is off by"):
            check_self_test(test, {"edges": wrong})


def test_the_line_says_when_it_may_be_rounding():
    for deviation, words in ((0.0001, "untrained weights"), (1.0, "computes wrong numbers")):
        expected = outputs(0.04, deviation)
        with pytest.raises(CheckFailed, match=words):
            check_self_test(make_self_test(expected, "fp32"), {"edges": expected["edges"] + 1})
