from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.metrics.temporal import TemporalMetric, View
from tests.temporal.walks import HEIGHT, WIDTH, Walk, make_walk


@pytest.fixture(scope="module")
def walk() -> Walk:
    return make_walk()


def metric_of(walk: Walk) -> TemporalMetric:
    return TemporalMetric(walk.intrinsics, HEIGHT, WIDTH)


def test_the_true_depth_has_a_small_error_and_no_drift(walk: Walk) -> None:
    metric = metric_of(walk)
    for pose, depth, labels in zip(walk.poses, walk.depths, walk.labels, strict=True):
        metric.update(View(pose, depth, labels, depth))
    figures = metric.compute()
    assert figures["tae"] < 0.01
    assert figures["label_flicker"] < 0.02
    assert figures["scale"] == pytest.approx(1)
    assert figures["scale_drift"] == pytest.approx(0, abs=1e-6)


def test_a_scale_that_alternates_is_the_error(walk: Walk) -> None:
    metric, wall = metric_of(walk), np.full((HEIGHT, WIDTH), 2.0, np.float32)
    for index in range(5):
        metric.update(View(np.eye(4), wall * np.float32(1.1 if index % 2 else 1.0), None, wall))
    figures = metric.compute()
    assert figures["tae"] == pytest.approx((0.1 / 1.0 + 0.1 / 1.1) / 2, rel=1e-4)
    assert np.isnan(figures["label_flicker"])
    scales = np.log([1.0, 1.1, 1.0, 1.1, 1.0])
    assert figures["scale"] == pytest.approx(np.exp(scales.mean()), rel=1e-5)
    assert figures["scale_drift"] == pytest.approx(scales.std(), rel=1e-4)


def test_flicker_counts_labels_that_change(walk: Walk) -> None:
    metric, wall = metric_of(walk), np.full((HEIGHT, WIDTH), 2.0, np.float32)
    labels = np.zeros(wall.shape, np.uint8)
    changed = labels.copy()
    changed[:24], changed[24:48] = 3, 255
    metric.update(View(np.eye(4), wall, labels))
    metric.update(View(np.eye(4), wall, changed))
    # Of the 72 rows that both frames label, 24 change.
    assert metric.compute()["label_flicker"] == pytest.approx(24 / 72)


def test_a_surface_that_is_hidden_does_not_flicker(walk: Walk) -> None:
    metric, wall = metric_of(walk), np.full((HEIGHT, WIDTH), 3.0, np.float32)
    nearer, labels = wall.copy(), np.zeros(wall.shape, np.uint8)
    nearer[:48] = 1.0
    other = labels.copy()
    other[:48] = 7
    metric.update(View(np.eye(4), wall, labels, wall))
    metric.update(View(np.eye(4), nearer, other, nearer))
    assert metric.compute()["label_flicker"] == 0


def test_states_add_up_and_a_cut_makes_no_pair(walk: Walk) -> None:
    views = [View(*some) for some in zip(walk.poses, walk.depths, walk.labels, walk.depths, strict=True)]
    metric, states = metric_of(walk), []
    for index, view in enumerate(views):
        if index == 4:
            metric.cut()
        states.append(metric.frame_state(view))
    total = np.sum(states, axis=0)
    assert total[0] == len(views) - 2
    assert states[0][0] == states[4][0] == 0
    assert set(metric.compute_from(total)) == set(TemporalMetric.units)
    assert np.isnan(list(metric.compute_from(np.zeros(7)).values())).all()
