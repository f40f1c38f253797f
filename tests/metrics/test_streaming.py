"""Test all four metrics: bitwise identical in any batching, order and split; resampling; memory; light imports."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import DepthMetric, EdgesMetric, Metric, NormalsMetric, SemanticsMetric
from m2h_deploy.metrics.base import joined, split

FRAMES = 12
KINDS = ["semantics", "depth", "normals", "edges"]


def make(kind: str) -> Metric:
    return {"semantics": SemanticsMetric, "depth": DepthMetric, "normals": NormalsMetric, "edges": EdgesMetric}[kind]()


def frames(kind: str, count: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """Return stacked predictions and targets; some frames are entirely invalid."""
    rng = np.random.default_rng(KINDS.index(kind))
    shape = (count, 16, 18)
    if kind == "semantics":
        target = rng.choice([0, 1, 5, 39, 255], shape).astype(np.uint8)
        target[3] = 255
        return rng.integers(0, 40, shape), target
    if kind == "depth":
        target = rng.uniform(0, 10, shape).astype(np.float32) * (rng.random(shape) < 0.7)
        target[3] = 0
        return rng.uniform(0.1, 10, shape).astype(np.float32), target.astype(np.float32)
    if kind == "normals":
        target = rng.standard_normal((*shape, 3)) * (rng.random((*shape, 1)) < 0.7)
        target[3] = 0
        return rng.standard_normal((*shape, 3)), target
    target = (rng.random(shape) < 0.15).astype(np.uint8)
    target[3] = 0
    return rng.random(shape), target


@pytest.fixture(scope="module", params=KINDS)
def seen(request: pytest.FixtureRequest) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Return kind, predictions, targets and the state of each frame."""
    predictions, targets = frames(request.param)
    metric = make(request.param)
    states = np.stack([metric.frame_state(p, t) for p, t in zip(predictions, targets, strict=True)])
    return request.param, predictions, targets, states


def test_a_batch_equals_its_frames(seen: tuple) -> None:
    kind, predictions, targets, states = seen
    for cut in (1, 5, FRAMES):
        metric = make(kind)
        for start in range(0, FRAMES, cut):
            metric.update(predictions[start : start + cut], targets[start : start + cut])
        assert np.array_equal(metric.state, states.sum(axis=0))


def test_any_order_and_any_split_between_workers_give_the_same_bits(seen: tuple) -> None:
    kind, _, _, states = seen
    expected = states.sum(axis=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        workers = [make(kind) for _ in range(3)]
        for i in rng.permutation(FRAMES):
            worker = workers[rng.integers(3)]
            worker.state = worker.state + states[i]
        whole = make(kind)
        for i in rng.permutation(3):
            whole.merge(workers[i])
        assert np.array_equal(whole.state, expected)
        assert repr(whole.compute()) == repr(whole.compute_from(expected))


def test_a_resample_of_states_equals_evaluating_the_resampled_frames(seen: tuple) -> None:
    kind, predictions, targets, states = seen
    drawn = np.random.default_rng(1).integers(0, FRAMES, FRAMES)
    metric = make(kind)
    metric.update(predictions[drawn], targets[drawn])
    times = np.bincount(drawn, minlength=FRAMES).astype(float)
    assert metric.compute_from(times @ states) == pytest.approx(metric.compute(), rel=1e-12, nan_ok=True)


def test_the_state_does_not_grow(seen: tuple) -> None:
    kind, predictions, targets, _ = seen
    metric = make(kind)
    metric.update(predictions[:2], targets[:2])
    assert metric.state.shape == (metric.state_size,)
    assert metric.state.dtype == np.float64
    assert metric.state_size < 4000


def test_inputs_are_left_unchanged(seen: tuple) -> None:
    kind, predictions, targets, _ = seen
    before = predictions.copy(), targets.copy()
    make(kind).update(predictions, targets)
    assert np.array_equal(predictions, before[0])
    assert np.array_equal(targets, before[1])


def test_a_bad_frame_rejects_its_whole_batch(seen: tuple) -> None:
    kind, predictions, targets, _ = seen
    broken = predictions.astype(np.float64)
    broken[-1] = np.nan
    metric = make(kind)
    with pytest.raises(M2HError):
        metric.update(broken, targets)
    assert not metric.state.any()


def test_batches_of_different_length_are_refused(seen: tuple) -> None:
    kind, predictions, targets, _ = seen
    with pytest.raises(M2HError, match="one batch of such frames"):
        make(kind).update(predictions[:3], targets[:2])


def test_metrics_of_other_kinds_or_settings_do_not_merge() -> None:
    with pytest.raises(M2HError, match="same arguments"):
        SemanticsMetric(40).merge(SemanticsMetric(41))
    with pytest.raises(M2HError, match="same arguments"):
        DepthMetric().merge(DepthMetric(clamp=(0.001, 10)))
    with pytest.raises(M2HError, match="same arguments"):
        EdgesMetric().merge(EdgesMetric(max_distance=0.0075))
    with pytest.raises(M2HError, match="NormalsMetric"):
        DepthMetric().merge(NormalsMetric())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_split_sums_are_exact_and_add_in_any_order(values: list[float], random: object) -> None:
    parts = [split([value]) for value in values]
    assert [float(joined(part)[0]) for part in parts] == pytest.approx(values, rel=1e-15, abs=2.0**-63)
    in_order = np.sum(parts, axis=0)
    random.shuffle(parts)  # type: ignore[attr-defined]
    shuffled = np.zeros(2)
    for part in parts:
        shuffled = shuffled + part
    assert np.array_equal(in_order, shuffled)


def test_importing_the_metrics_loads_neither_scipy_nor_torch() -> None:
    code = "import sys, m2h_deploy.metrics; print([m for m in ('scipy', 'torch') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
