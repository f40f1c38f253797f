"""Test odsF: a slow, independent evaluation; perfect, shifted and wrong boundaries; bad input."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_oracles import edge_counts, matched_pairs, thin_by_pixel

from m2h_deploy import Runtime
from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import EdgesMetric
from m2h_deploy.metrics.edges import THRESHOLDS
from m2h_deploy.metrics.thinning import suppress_non_maxima


def polygons(seed: int, height: int = 120, width: int = 160, margin: int = 12) -> np.ndarray:
    """Return boundaries of random polygons, uint8 (H, W), at least `margin` pixels from the border."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((height, width), np.uint8)
    for label in range(1, 9):
        corners = rng.uniform([margin, margin], [width - margin, height - margin], (4, 2)).astype(np.int32)
        cv2.fillPoly(segments, [corners], label)
    edges = np.zeros((height, width), np.uint8)
    edges[:, :-1] |= segments[:, 1:] != segments[:, :-1]
    edges[:-1] |= segments[1:] != segments[:-1]
    return edges


def soft(edges: np.ndarray, seed: int) -> np.ndarray:
    """Return a plausible network output for these boundaries: blurred, with noise, float32 0..1."""
    rng = np.random.default_rng(seed)
    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), 1.5)
    noise = cv2.GaussianBlur(rng.standard_normal(edges.shape).astype(np.float32), (0, 0), 1.0)
    return np.clip(blurred / blurred.max() + 0.5 * noise, 0, 1)


@pytest.mark.parametrize("suppress", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_and_figures_equal_the_slow_evaluation(seed: int, suppress: bool) -> None:
    radius_share = 0.07
    frames = []
    metric = EdgesMetric(max_distance=radius_share, suppress=suppress)
    for i in range(2):
        target = polygons(10 * seed + i, 26, 34, margin=2)
        prediction = soft(target, seed + i)
        metric.update(prediction, target)
        strength = suppress_non_maxima(prediction) if suppress else prediction
        frames.append(edge_counts(strength, target > 0, radius_share * math.hypot(26, 34)))
    total = sum(frames)
    assert np.array_equal(metric.state.reshape(100, 4)[:99], total)

    def f_of(row: np.ndarray) -> float:
        p = row[0] / row[1] if row[1] else 1.0
        r = row[2] / row[3]
        return 2 * p * r / (p + r) if p + r else 0.0

    figures = metric.compute()
    assert figures["odsF"] == pytest.approx(max(f_of(row) for row in total), abs=1e-12)
    assert figures["oisF"] == pytest.approx(f_of(sum(max(rows, key=f_of) for rows in frames)), abs=1e-12)
    assert figures["odsF"] == f_of(total[round(figures["odsT"] * 100) - 1])


def stretched(values: np.ndarray) -> np.ndarray:
    """Scale to the range 0..1."""
    return np.clip((values - values.min()) / max(values.max() - values.min(), 1e-6), 0, 1).astype(np.float32)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(3, 30), st.integers(3, 30)),
    smooth=st.sampled_from([0.3, 1.0, 2.5]),
    share=st.floats(0, 0.6),
    max_distance=st.sampled_from([0.0, 0.03, 0.1]),
)
def test_counts_of_random_maps_equal_those_of_each_threshold_alone(
    seed: int, size: tuple[int, int], smooth: float, share: float, max_distance: float
) -> None:
    rng = np.random.default_rng(seed)
    prediction = cv2.GaussianBlur(rng.random(size).astype(np.float32), (0, 0), smooth)
    prediction = stretched(prediction)
    target = rng.random(size) < share
    metric = EdgesMetric(max_distance=max_distance, suppress=False)
    check_each_threshold(metric, prediction, target, range(0, 99, 7))


def check_each_threshold(metric: EdgesMetric, prediction: np.ndarray, target: np.ndarray, rows: range) -> None:
    """Compare the counts with a thinning and a matching of each threshold from scratch."""
    counts = metric.frame_state(prediction, target).reshape(100, 4)
    strength = suppress_non_maxima(prediction) if metric.suppress else prediction
    truth = thin_by_pixel(target)
    radius = metric.max_distance * math.hypot(*target.shape)
    for i in rows:
        found = thin_by_pixel(strength > np.float32(THRESHOLDS[i]))
        pairs = matched_pairs(found, truth, radius)
        assert list(counts[i]) == [pairs, found.sum(), pairs, truth.sum()]


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_counts_of_an_engine_equal_those_of_each_threshold_alone(tiny_bundle: Path, share: float) -> None:
    image = np.random.default_rng(1).integers(0, 256, (112, 140, 3), np.uint8)
    with Runtime.load(tiny_bundle) as runtime:
        edges, other = runtime(image).edges, runtime(image[::-1].copy()).edges
    assert edges is not None
    assert other is not None
    edges, other = stretched(edges), stretched(other)
    target = suppress_non_maxima(other) > share
    assert target.any()
    check_each_threshold(EdgesMetric(max_distance=0.05), edges, target, range(10, 99, 40))


def test_a_perfect_prediction_scores_one() -> None:
    target = polygons(0)
    metric = EdgesMetric()
    metric.update(target.astype(np.float32), target)
    figures = metric.compute()
    assert (figures["odsF"], figures["oisF"]) == (1.0, 1.0)


@pytest.mark.parametrize("shift", [(0, 1), (1, 0), (-1, 1), (1, 1)])
def test_a_shift_by_one_pixel_still_scores_one(shift: tuple[int, int]) -> None:
    target = polygons(1)
    metric = EdgesMetric()
    metric.update(np.roll(target, shift, (0, 1)).astype(np.float32), target)
    assert metric.compute()["odsF"] == 1.0


def test_boundaries_beyond_the_distance_do_not_match() -> None:
    target = np.zeros((60, 80), np.uint8)
    target[10:50, 20] = 1
    for distance, expected in ((4, 1.0), (6, 0.0)):
        metric = EdgesMetric(max_distance=5 / 100)
        metric.update(np.roll(target, distance, 1).astype(np.float32), target)
        assert metric.compute()["odsF"] == expected


def test_each_target_pixel_is_matched_once() -> None:
    target = np.zeros((60, 80), np.uint8)
    target[10:50, 40] = 1
    doubled = (target | np.roll(target, 3, 1)).astype(np.float32)
    metric = EdgesMetric(max_distance=0.05)
    metric.update(doubled, target)
    figures = metric.compute()
    assert figures["odsR"] == 1.0
    assert figures["odsP"] == pytest.approx(0.5, abs=0.02)


def test_boundaries_on_the_outermost_pixels_need_suppression_off() -> None:
    target = np.zeros((40, 40), np.uint8)
    target[:, 0] = 1
    found = []
    for suppress in (True, False):
        metric = EdgesMetric(suppress=suppress)
        metric.update(target.astype(np.float32), target)
        found.append(metric.compute()["odsF"])
    assert found == [0.0, 1.0]


def test_better_predictions_score_higher() -> None:
    target = polygons(2)
    scores = []
    for noise in (0.1, 0.5, 3.0):
        rng = np.random.default_rng(0)
        prediction = np.clip(soft(target, 0) + noise * rng.random(target.shape).astype(np.float32) - noise / 2, 0, 1)
        metric = EdgesMetric()
        metric.update(prediction, target)
        scores.append(metric.compute()["odsF"])
    assert scores[0] > scores[1] > scores[2]


def test_the_best_threshold_is_where_the_boundary_stands_out() -> None:
    target = polygons(3)
    speckle = np.zeros(target.shape, np.float32)
    speckle[::6, ::6] = 0.4
    metric = EdgesMetric()
    metric.update(np.maximum(speckle * (target == 0), 0.7 * target).astype(np.float32), target)
    assert 0.4 <= metric.compute()["odsT"] < 0.7
    precision, recall = metric.precision_recall()
    assert len(precision) == len(recall) == len(THRESHOLDS) == 99
    assert recall[80] == 0.0
    assert precision[80] == 1.0


def test_average_precision_of_a_graded_perfect_detector_is_almost_one() -> None:
    target = np.zeros((100, 300), np.uint8)
    target[50, 20:280] = 1
    graded = target * np.linspace(0.01, 1, 300, dtype=np.float32)
    metric = EdgesMetric(suppress=False)
    metric.update(graded, target)
    assert 0.95 < metric.compute()["ap"] <= 1.0


def test_frames_without_boundaries() -> None:
    nothing = np.zeros((20, 20), np.uint8)
    metric = EdgesMetric()
    metric.update(nothing.astype(np.float32), nothing)
    assert all(math.isnan(value) for value in metric.compute().values())
    metric.update(np.zeros((20, 20)), polygons(0, 20, 20, 3))
    assert metric.compute()["odsF"] == 0.0


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), "uint8"),
        (np.zeros((4, 4)), np.zeros((4, 4)), "target has dtype float64"),
        (np.zeros((4, 4)), np.full((4, 4), 255, np.uint8), "255"),
        (np.full((4, 4), -2.5), np.zeros((4, 4), bool), "sigmoid"),
        (np.full((4, 4), np.nan), np.zeros((4, 4), bool), "16 nan"),
        (np.zeros((4, 5)), np.zeros((4, 4), bool), "(4, 5)"),
        (np.zeros((1, 4)), np.zeros((1, 4), bool), "2x2"),
    ],
)
def test_bad_input_gives_a_one_line_error(prediction: np.ndarray, target: np.ndarray, says: str) -> None:
    with pytest.raises(M2HError) as error:
        EdgesMetric().update(prediction, target)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("max_distance", [-0.1, 1.0, float("nan")])
def test_an_invalid_distance_is_refused(max_distance: float) -> None:
    with pytest.raises(M2HError, match="max_distance"):
        EdgesMetric(max_distance=max_distance)
