from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal import FilterSettings, TemporalFilter
from tests.temporal.walks import HEIGHT, WIDTH, Walk, make_walk

RATE = 10.0


@pytest.fixture(scope="module")
def walk() -> Walk:
    return make_walk()


def predictions(walk: Walk, noise: float = 0.0, wrong_labels: float = 0.0, scales=None) -> list[Prediction]:
    rng = np.random.default_rng(0)
    result = []
    for index, (depth, labels, normals) in enumerate(zip(walk.depths, walk.labels, walk.normals, strict=True)):
        measured = depth * (1 + noise * rng.standard_normal(depth.shape)) * (1.0 if scales is None else scales[index])
        wrong = rng.random(labels.shape) < wrong_labels
        edges = np.zeros(depth.shape, np.float32)
        result.append(
            Prediction(measured.astype(np.float32), np.where(wrong, 39, labels).astype(np.uint8), normals, edges)
        )
    return result


def filtered(walk: Walk, given: list[Prediction], temporal: TemporalFilter) -> list[Prediction]:
    return [temporal(one, pose, i / RATE) for i, (one, pose) in enumerate(zip(given, walk.poses, strict=True))]


def rmse(given: list[Prediction], truth: list[np.ndarray]) -> float:
    return float(np.sqrt(np.mean([(one.depth - depth) ** 2 for one, depth in zip(given, truth, strict=True)])))


def test_noise_is_averaged(walk: Walk) -> None:
    raw = predictions(walk, noise=0.05, wrong_labels=0.2)
    temporal = TemporalFilter(walk.intrinsics)
    smooth = filtered(walk, raw, temporal)
    # Occlusions and pixels that enter the image have no past, and rounding to pixels costs at edges.
    assert rmse(smooth[6:], walk.depths[6:]) < 0.65 * rmse(raw[6:], walk.depths[6:])
    wrong = [np.mean([(p.semantics != truth).mean() for p, truth in zip(some[6:], walk.labels[6:], strict=True)])
             for some in (raw, smooth)]  # fmt: skip
    assert wrong[1] < 0.6 * wrong[0]
    assert temporal.support > 0.8
    assert temporal.resets == {}
    assert smooth[-1].timings["filter"] > 0


def test_a_still_camera_reaches_the_gain_of_its_history(walk: Walk) -> None:
    rng = np.random.default_rng(1)
    temporal = TemporalFilter(walk.intrinsics, FilterSettings(history_size=8, scale_gain=0.0, max_depth=100.0))
    wall = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    noise = [rng.normal(0, 0.05, wall.shape).astype(np.float32) for _ in range(60)]
    for index, one in enumerate(noise):
        result = temporal(Prediction(wall + one, None, None, None), np.eye(4), index / RATE)
    # A steady gain of 1/8 leaves the variance g / (2 - g) = 1/15.
    assert np.std(result.depth - wall) == pytest.approx(0.05 / np.sqrt(15), rel=0.05)
    assert result.semantics is None and result.normals is None


def test_perfect_predictions_stay_perfect(walk: Walk) -> None:
    smooth = filtered(walk, predictions(walk), TemporalFilter(walk.intrinsics))
    errors = np.concatenate([np.abs(p.depth - d).ravel() for p, d in zip(smooth, walk.depths, strict=True)])
    assert np.median(errors) < 0.01
    # Only at the borders of objects, which move by fractions of these large pixels.
    assert np.mean([(p.semantics != truth).mean() for p, truth in zip(smooth, walk.labels, strict=True)]) < 0.04
    cosines = np.concatenate([(p.normals * n).sum(-1).ravel() for p, n in zip(smooth, walk.normals, strict=True)])
    assert np.median(cosines) > 0.999


def test_normals_are_turned_with_the_camera_and_stay_unit_vectors(walk: Walk) -> None:
    rng = np.random.default_rng(2)
    temporal = TemporalFilter(walk.intrinsics)
    angles = []
    for index, (pose, depth, normals) in enumerate(zip(walk.poses, walk.depths, walk.normals, strict=True)):
        noisy = normals + rng.normal(0, 0.2, normals.shape).astype(np.float32)
        noisy /= np.linalg.norm(noisy, axis=-1, keepdims=True)
        result = temporal(Prediction(depth, None, noisy, None), pose, index / RATE)
        np.testing.assert_allclose(np.linalg.norm(result.normals, axis=-1), 1, atol=1e-5)
        angles.append([np.median(1 - (some * normals).sum(-1)) for some in (noisy, result.normals)])
    raw, smooth = np.mean(angles[6:], axis=0)
    assert smooth < 0.5 * raw


def test_the_scale_is_steadied(walk: Walk) -> None:
    scales = np.exp(np.random.default_rng(3).normal(0, 0.05, len(walk.poses)))
    raw = predictions(walk, scales=scales)
    smooth = filtered(walk, raw, TemporalFilter(walk.intrinsics))
    drift = [
        np.std([np.log(np.median(p.depth / d)) for p, d in zip(some, walk.depths, strict=True)])
        for some in (raw, smooth)
    ]
    assert drift[1] < 0.5 * drift[0]


def test_a_new_obstacle_appears_at_once(walk: Walk) -> None:
    temporal = TemporalFilter(walk.intrinsics)
    given = predictions(walk)
    for index in range(len(given) - 1):
        temporal(given[index], walk.poses[index], index / RATE)
    depth, labels = given[-1].depth.copy(), given[-1].semantics.copy()
    depth[40:60, 50:70], labels[40:60, 50:70] = 0.5, 30
    result = temporal(Prediction(depth, labels, None, None), walk.poses[-1], (len(given) - 1) / RATE)
    assert np.abs(result.depth[40:60, 50:70] - 0.5).max() < 0.01
    assert (result.semantics[40:60, 50:70] == 30).all()


@pytest.mark.parametrize(("step", "kept"), [(0.1, 7 / 8), (0.15, 7 / 8), (0.225, 0.77), (0.3, 0.0), (0.5, 0.0)])
def test_trust_in_the_past_falls_with_the_difference(step: float, kept: float) -> None:
    """A wall of 2 m comes nearer; `kept` is the weight of the past after a long history."""
    settings = FilterSettings(scale_gain=0.0, depth_gate_abs=0.0)
    temporal = TemporalFilter(Intrinsics(100.0, 100.0, 63.5, 47.5), settings)
    wall = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    for index in range(80):
        temporal(Prediction(wall, None, None, None), np.eye(4), index / RATE)
    nearer = wall / np.float32(1 + step)
    result = temporal(Prediction(nearer, None, None, None), np.eye(4), 80 / RATE)
    assert (result.depth - nearer) / (wall - nearer) == pytest.approx(kept, abs=0.03)


def test_things_that_move_are_never_fused(walk: Walk) -> None:
    label = int(walk.labels[0][50, 60])
    temporal = TemporalFilter(walk.intrinsics, FilterSettings(dynamic_labels=(label,)))
    raw = predictions(walk, noise=0.05)
    for one, result in zip(raw, filtered(walk, raw, temporal), strict=True):
        moving = one.semantics == label
        assert (result.depth[moving] == one.depth[moving]).all()
        assert (result.semantics[moving] == label).all()
    assert temporal.support > 0


def test_inputs_are_not_changed(walk: Walk) -> None:
    raw = predictions(walk, noise=0.05)
    copies = [(p.depth.copy(), p.semantics.copy(), p.normals.copy()) for p in raw]
    filtered(walk, raw, TemporalFilter(walk.intrinsics))
    for one, (depth, labels, normals) in zip(raw, copies, strict=True):
        assert (one.depth == depth).all() and (one.semantics == labels).all() and (one.normals == normals).all()


@pytest.mark.parametrize(
    ("pose", "timestamp", "reason"),
    [
        ("next", 2.0, "pause"),
        ("next", 0.0, "time runs backwards"),
        ("far", 0.3, "the camera jumped"),
        ("turned", 0.3, "the camera jumped"),
    ],
)
def test_the_past_is_dropped(walk: Walk, pose: str, timestamp: float, reason: str) -> None:
    raw = predictions(walk, noise=0.05)
    temporal = TemporalFilter(walk.intrinsics)
    for index in range(2):
        temporal(raw[index], walk.poses[index], 0.1 * (index + 1))
    there = walk.poses[2].copy()
    if pose == "far":
        there[:3, 3] += 0.6
    if pose == "turned":
        there[:3, :3] = there[:3, :3] @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    result = temporal(raw[2], there, timestamp)
    assert (result.depth == raw[2].depth).all() and (result.semantics == raw[2].semantics).all()
    assert temporal.resets == {reason: 1}
    temporal(raw[3], there, timestamp + 0.1)
    assert temporal.support > 0 or pose != "next"


def test_a_cut_is_noticed(walk: Walk) -> None:
    temporal = TemporalFilter(walk.intrinsics)
    first = predictions(walk)[0]
    temporal(first, walk.poses[0], 0.0)
    other = Prediction(first.depth * np.float32(2.5), first.semantics, first.normals, None)
    assert (temporal(other, walk.poses[0], 0.1).depth == other.depth).all()
    assert temporal.resets == {"past and present differ": 1}
    assert temporal.log_scale == 0.0


def test_a_frame_without_a_pose_is_passed_on(walk: Walk) -> None:
    raw = predictions(walk, noise=0.05)
    temporal = TemporalFilter(walk.intrinsics)
    temporal(raw[0], walk.poses[0], 0.0)
    assert temporal(raw[1], None, 0.1) is raw[1]
    assert temporal.support == 0
    assert temporal.unposed == 1
    temporal(raw[2], walk.poses[2], 0.2)  # the past is still there
    assert temporal.support > 0.8


def test_what_is_missing_is_said(walk: Walk) -> None:
    one = predictions(walk)[0]
    with pytest.raises(M2HError, match="no depth"):
        TemporalFilter(walk.intrinsics)(Prediction(None, one.semantics, None, None), np.eye(4), 0.0)
    with pytest.raises(M2HError, match="intrinsics"):
        TemporalFilter()(one, np.eye(4), 0.0)
    with pytest.raises(M2HError, match="NaN"):
        TemporalFilter(walk.intrinsics)(one, np.full((4, 4), np.nan), 0.0)


@pytest.mark.parametrize(
    ("pose", "words"),
    [
        (np.eye(3), r"shape \(3, 3\)"),
        ([0.0, 0.0, 0.0, 1.0], r"shape \(4,\)"),
        (np.zeros((4, 4)), "rigid"),
        (np.diag([2.0, 2.0, 2.0, 1.0]), "rigid"),
    ],
)
def test_a_pose_that_is_none_is_refused(walk: Walk, pose, words: str) -> None:
    with pytest.raises(M2HError, match=words):
        TemporalFilter(walk.intrinsics)(predictions(walk)[0], pose, 0.0)


def test_labels_have_numbers() -> None:
    with pytest.raises(M2HError, match="dynamic_labels is"):
        FilterSettings(dynamic_labels=("person",))


def test_another_size_starts_again(walk: Walk) -> None:
    temporal = TemporalFilter(walk.intrinsics)
    temporal(predictions(walk)[0], walk.poses[0], 0.0)
    half = Prediction(walk.depths[1][::2, ::2].copy(), None, None, None)
    temporal.intrinsics = Intrinsics(40.0, 40.0, 31.5, 23.5)
    assert (temporal(half, walk.poses[1], 0.1).depth == half.depth).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history_size", 1),
        ("scale_gain", 1.5),
        ("depth_gate_abs", -0.1),
        ("max_history_age_s", 0.0),
        ("min_depth", 20.0),
        ("label_min_votes", 0),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(M2HError, match=f"{name} is {value}"):
        FilterSettings(**{name: value})
