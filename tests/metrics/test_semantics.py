"""Test mIoU: a pixel loop, ignored and unknown pixels, absent classes, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import SemanticsMetric


def by_pixel(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Compute the metrics from per-class sets of pixels, with the data's labels on both sides (-1: unknown)."""
    ious, accuracies, right, labeled = [], [], 0, 0
    pixels = [(int(p), int(t)) for p, t in zip(prediction.ravel(), target.ravel(), strict=True) if t != 255]
    for c in range(40):
        given = {i for i, (p, _) in enumerate(pixels) if p == c}
        truth = {i for i, (_, t) in enumerate(pixels) if t == c}
        ious.append(len(given & truth) / len(given | truth) if given | truth else None)
        if truth:
            accuracies.append(len(given & truth) / len(truth))
        right += len(given & truth)
        labeled += len(truth)
    present = [iou for iou in ious if iou is not None]
    return {
        "miou": sum(present) / 40,
        "miou_present": sum(present) / len(present),
        "pixel_accuracy": right / labeled,
        "mean_accuracy": sum(accuracies) / len(accuracies),
    }


@pytest.mark.parametrize("num_outputs", [40, 41])
@pytest.mark.parametrize("seed", range(4))
def test_figures_equal_a_pixel_loop(seed: int, num_outputs: int) -> None:
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, 40)
    target = rng.integers(0, classes, (13, 17)).astype(np.uint8)
    target[rng.random(target.shape) < 0.2] = 255
    prediction = rng.integers(0, num_outputs, target.shape).astype(np.uint8)
    hit = (rng.random(target.shape) < 0.6) & (target != 255)
    prediction[hit] = target[hit] + (num_outputs - 40)
    metric = SemanticsMetric(num_outputs)
    metric.update(prediction, target)
    expected = by_pixel(prediction.astype(int) - (num_outputs - 40), target)
    assert metric.compute() == pytest.approx(expected, abs=1e-12)


def test_a_perfect_prediction_of_all_classes_scores_one() -> None:
    target = np.arange(40, dtype=np.uint8).reshape(5, 8)
    metric = SemanticsMetric(41)
    metric.update(target + 1, target)
    assert set(metric.compute().values()) == {1.0}


def test_predictions_on_unlabeled_pixels_have_no_effect() -> None:
    target = np.array([[0, 1, 255, 255]], np.uint8)
    one, other = SemanticsMetric(), SemanticsMetric()
    one.update(np.array([[0, 1, 0, 5]]), target)
    other.update(np.array([[0, 1, 39, 7]]), target)
    assert np.array_equal(one.state, other.state)


def test_unknown_is_a_miss_and_not_an_ignored_pixel() -> None:
    metric = SemanticsMetric(num_outputs=41)
    metric.update(np.array([[1, 0, 0, 2]]), np.array([[0, 0, 255, 1]], np.uint8))
    assert metric.compute()["pixel_accuracy"] == pytest.approx(2 / 3)
    iou = metric.per_class_iou()
    assert iou[0] == 0.5
    assert iou[1] == 1.0
    assert np.isnan(iou[2:]).all(), "unknown adds to no class"


def test_absent_classes_count_as_zero_in_miou_and_not_in_miou_present() -> None:
    metric = SemanticsMetric()
    metric.update(np.array([[3, 3]]), np.array([[3, 3]], np.uint8))
    assert metric.compute()["miou"] == 1 / 40
    assert metric.compute()["miou_present"] == 1.0


def test_a_class_only_predicted_counts_as_present_with_iou_zero() -> None:
    metric = SemanticsMetric()
    metric.update(np.array([[3, 7]]), np.array([[3, 3]], np.uint8))
    assert metric.per_class_iou()[7] == 0.0
    assert metric.compute()["miou_present"] == 0.25


def test_frames_without_labels_give_nan() -> None:
    metric = SemanticsMetric()
    metric.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    assert all(math.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize(
    ("prediction", "target", "says"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), np.uint8), "float64"),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2)), "target has dtype"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.uint8), "shape"),
        (np.full((2, 2), 40), np.zeros((2, 2), np.uint8), "num_outputs"),
        (np.full((2, 2), -1), np.zeros((2, 2), np.uint8), "0..39"),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 40, np.uint8), "255"),
        (np.zeros((0, 2), np.uint8), np.zeros((0, 2), np.uint8), "(0, 2)"),
    ],
)
def test_bad_input_gives_a_one_line_error(prediction: np.ndarray, target: np.ndarray, says: str) -> None:
    with pytest.raises(M2HError) as error:
        SemanticsMetric().update(prediction, target)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [13, 150])
def test_other_class_counts_than_nyuv2s_are_averaged_over_their_own(count: int) -> None:
    target = np.array([[0, 1, count - 1, 255]], np.uint8)
    metric = SemanticsMetric(count)
    metric.update(np.array([[0, 1, 0, 5]], np.uint8), target)
    assert metric.compute()["miou"] == pytest.approx((0.5 + 1 + 0) / count)
    unknown = SemanticsMetric(count + 1, unknown=True)
    unknown.update(np.array([[1, 2, 0, 6]], np.uint8), target)
    assert unknown.compute()["pixel_accuracy"] == pytest.approx(2 / 3)
    with pytest.raises(M2HError, match=rf"0\.\.{count - 1} "):
        metric.update(np.zeros((1, 1), np.uint8), np.full((1, 1), count, np.uint8))


@pytest.mark.parametrize(("outputs", "unknown"), [(0, False), (1, True), (256, False)])
def test_an_invalid_number_of_outputs_is_refused(outputs: int, unknown: bool) -> None:
    with pytest.raises(M2HError, match=f"num_outputs is {outputs}, must be"):
        SemanticsMetric(outputs, unknown=unknown)
