"""Gates are judged by the whole interval."""

from __future__ import annotations

import math

import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.parity.gates import Gates, Rule, judge

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


def test_what_reaches_the_limit_is_not_within_it():
    assert judge(LOSS, 0.5, 0.5, (0.5, 0.5)).verdict == "fail"


def test_nothing_measured_is_not_passed():
    gate = judge(LOSS, 0.5, math.nan, (math.nan, math.nan))
    assert gate.verdict == "unsure"
    assert "nothing to measure" in gate.message


@pytest.mark.parametrize("limit", [-1.0, math.nan, math.inf])
def test_a_limit_that_is_no_limit_is_refused(limit):
    with pytest.raises(M2HError, match="gate rmse_increase"):
        Gates(rmse_increase=limit)
