"""Test the sums of a variant: segments, the median ratio of depth, figures of frames."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.mapping.plan import plan_map
from m2h_deploy.mapping.sums import Estimate, RatioHistogram, Reference, SegmentSums, frame_figures, to_labels
from tests.mapping.conftest import FRAMES


@pytest.fixture(scope="module")
def plan(room):
    return plan_map(open_sequence(room), [])


def figures(sums: SegmentSums) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, values in sums.sums.items():
        found |= frame_figures(name, values.sum(axis=0))
    return found


def summed(plan, change, *, follows: bool = True) -> SegmentSums:
    sums = SegmentSums(plan, len(NYU40_CLASSES), judge_labels=True)
    for number, moment in enumerate(plan.posed):
        frame = plan.sequence.read(moment)
        truth = Reference(frame.depth, frame.semantics)
        sums.add(plan.segment(number), truth, moment.pose, change(frame), follows=follows)
    return sums


def test_the_truth_has_no_error_and_the_temporal_figures_are_near_zero(plan):
    found = figures(summed(plan, lambda frame: Estimate(frame.depth, frame.semantics)))
    assert (found["rmse"], found["abs_rel"], found["miou"]) == (0, 0, 1)
    assert found["tae"] < 0.1
    assert found["scale_drift"] == 0


def test_a_constant_factor_is_an_error_of_depth_and_no_drift(plan):
    found = figures(summed(plan, lambda frame: Estimate(frame.depth * np.float32(1.1), None)))
    assert found["abs_rel"] == pytest.approx(0.1, rel=1e-4)
    assert found["scale_drift"] < 1e-4
    assert math.isnan(found["miou"])


def test_pixels_without_depth_are_not_judged_and_pixels_without_a_label_are_wrong(plan):
    def half(frame):
        depth, labels = frame.depth.copy(), frame.semantics.copy()
        depth[:, :32], labels[:, :32] = 0, 255
        return Estimate(depth, labels)

    found = figures(summed(plan, half))
    assert found["rmse"] == 0
    assert 0 < found["miou"] < 1


def test_each_frame_is_in_one_segment_and_unrelated_frames_are_no_pairs(plan):
    sums = summed(plan, lambda frame: Estimate(frame.depth, frame.semantics))
    assert (sums.sums["depth"][:, 0] > 0).all()
    assert sums.sums["temporal"][:, 0].sum() == FRAMES - 1
    apart = summed(plan, lambda frame: Estimate(frame.depth, frame.semantics), follows=False)
    assert apart.sums["temporal"][:, 0].sum() == 0


def test_the_ratio_is_the_median_over_all_pixels():
    rng = np.random.default_rng(0)
    histogram, ratios = RatioHistogram(), []
    for _ in range(3):
        truth = rng.uniform(1, 4, (20, 30)).astype(np.float32)
        ratio = rng.lognormal(0.2, 0.3, truth.shape).astype(np.float32)
        truth[:2] = 0
        histogram.add(truth * ratio, truth)
        ratios.append(ratio[2:])
    assert histogram.median == pytest.approx(np.median(ratios), rel=1e-3)
    assert RatioHistogram().median is None


def test_stored_labels_are_one_above_those_in_memory():
    assert to_labels(np.array([0, 1, 40], np.uint8)).tolist() == [255, 0, 39]
    assert to_labels(None) is None
