"""Test that calibration chooses frames reproducibly, computes correct ranges, and measures them once."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engines.precision.calibration import (
    Calibration,
    CalibrationFrames,
    collect_histograms,
    frames_digest,
    measure_ranges,
    select_frames,
)
from engines.precision.histograms import BINS, Histogram, threshold
from m2h_deploy.errors import M2HError
from tests.commands import refused
from tests.engines.graphs import SIDE, frames, small_graph


def histogram_of(values: np.ndarray, parts: int = 4) -> Histogram:
    histogram = Histogram.empty()
    for part in np.array_split(values.astype(np.float32), parts):
        histogram = histogram.add(part)
    return histogram


def test_a_histogram_counts_every_value_in_any_order():
    values = np.concatenate([np.full(10, 0.5), np.full(20, 3.0), np.full(5, -7.0)])
    for order in (values, values[::-1]):
        histogram = histogram_of(order, parts=7)
        assert histogram.counts.sum() == 35
        assert histogram.largest == 7.0
        width = histogram.limit / BINS
        for value, count in ((0.5, 10), (3.0, 20), (7.0, 5)):
            place = min(int(value / width), BINS - 1)
            assert histogram.counts[max(place - 1, 0) : place + 2].sum() == count


def test_max_takes_the_largest_value_and_percentile_clips():
    values = np.concatenate([np.linspace(0, 1, 99_990), np.full(10, 100.0)])
    histogram = histogram_of(values)
    assert threshold(histogram, "max") == 100.0
    assert threshold(histogram, "percentile", 99.9) == pytest.approx(1.0, abs=2 * histogram.limit / BINS)
    assert threshold(histogram, "percentile", 100.0) == pytest.approx(100.0, rel=1e-3)


def test_entropy_clips_a_long_tail_and_keeps_a_uniform_range():
    rng = np.random.default_rng(0)
    heavy = histogram_of(rng.standard_t(3, size=400_000))
    assert 5 < threshold(heavy, "entropy") < 0.5 * heavy.largest
    uniform = histogram_of(rng.uniform(-1, 1, size=400_000))
    assert threshold(uniform, "entropy") > 0.95


def test_the_zeros_of_a_relu_do_not_change_what_entropy_keeps():
    values = np.abs(np.random.default_rng(0).normal(size=400_000))
    with_zeros = np.concatenate([values, np.zeros(400_000)])
    assert threshold(histogram_of(with_zeros), "entropy") == pytest.approx(
        threshold(histogram_of(values), "entropy"), rel=0.1
    )


def test_a_tensor_that_is_always_zero_has_no_range():
    assert threshold(histogram_of(np.zeros(100)), "entropy") == 0.0


def test_the_same_seed_chooses_the_same_frames_and_another_seed_others():
    source = frames(30)
    first, again, other = (select_frames(source, count=8, held_out=3, seed=s) for s in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256
    assert len(first.frames) == 8
    assert len(first.held_out) == 3


def test_calibration_and_check_frames_are_disjoint():
    chosen = select_frames(frames(12), count=8, held_out=4)
    digests = [frames_digest([frame]) for frame in (*chosen.frames, *chosen.held_out)]
    assert len(set(digests)) == 12


def test_frames_are_copied_so_that_a_reader_may_reuse_its_buffer():
    buffer = np.empty((1, 3, 4, 4), np.float32)

    def reader():
        for index in range(4):
            buffer[:] = np.arange(48, dtype=np.float32).reshape(buffer.shape) + index
            yield buffer

    chosen = select_frames(reader(), count=4, held_out=0)
    assert sorted(float(frame[0, 0, 0, 0]) for frame in chosen.frames) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ([], "no frames"),
        (frames(3), "3 usable frames"),
        ([np.full((1, 3, 8, 8), 0.5, np.float32)] * 9, "9 of one color were left out"),
        ([np.zeros((8, 8, 3), np.uint8)], "expected float32 (1, 3, H, W)"),
        ([np.full((1, 3, 8, 8), np.nan, np.float32)], "NaN or infinity"),
    ],
)
def test_unusable_calibration_frames_give_a_one_line_error(source, said):
    message = refused(select_frames, source, count=8, source="rooms/")
    assert said in message
    assert message.startswith("rooms/")


def test_unknown_calibrators_and_percentiles_are_refused():
    chosen = select_frames(frames(3), count=1)
    with pytest.raises(M2HError, match="max, entropy, percentile"):
        Calibration(chosen, "mean")  # type: ignore[arg-type]
    with pytest.raises(M2HError, match="percentile"):
        Calibration(chosen, "percentile", percentile=0.99)


@pytest.fixture
def calibration(tmp_path) -> Calibration:
    return Calibration(select_frames(frames(5), count=3), "max", cache=tmp_path / "cache")


def test_ranges_are_what_the_graph_computes(calibration):
    proto = small_graph()
    ranges = measure_ranges(proto, "0" * 64, ["image", "b"], calibration)
    assert ranges["image"] == pytest.approx(max(float(np.abs(f).max()) for f in calibration.frames.frames))
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    expected = 0.0
    for frame in calibration.frames.frames:
        padded = np.pad(frame[0], ((0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        expected = max(expected, float(np.einsum("chwij,ocij->ohw", patches, weights).max()))
    assert ranges["b"] == pytest.approx(expected, rel=1e-4)


def test_the_largest_value_is_the_same_with_and_without_a_histogram(calibration):
    names = ["image", "b", "sum"]
    alone = measure_ranges(small_graph(), "0" * 64, names, calibration)
    whole = collect_histograms(small_graph(), names, calibration.frames.frames)
    assert {name: histogram.largest for name, histogram in whole.items()} == pytest.approx(alone)


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_frames_of_another_size_are_refused_by_every_calibrator(method):
    chosen = CalibrationFrames(tuple(frames(1, 8, 8)), (), 0, "0" * 64)
    with pytest.raises(M2HError, match=f"8 x 8 pixels, the graph takes {SIDE} x {SIDE}"):
        measure_ranges(small_graph(), "0" * 64, ["b"], Calibration(chosen, method))


def test_ranges_are_measured_once_for_a_graph_and_frames(calibration):
    first = measure_ranges(small_graph(), "0" * 64, ["b"], calibration)
    broken = onnx.ModelProto()  # an invalid graph: running it would raise
    assert measure_ranges(broken, "0" * 64, ["b"], calibration) == first
    with pytest.raises(M2HError):
        measure_ranges(broken, "1" * 64, ["b"], calibration)


def test_a_damaged_cache_is_measured_again(calibration):
    first = measure_ranges(small_graph(), "0" * 64, ["b"], calibration)
    (file,) = calibration.cache.iterdir()
    content = file.read_bytes()
    beginnings = [b"damaged", content[: len(content) // 2], content[:-1]]
    # A byte of each entry: its header, its data, and the directory at the end.
    flipped = [content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :] for at in range(0, len(content), 97)]
    for damaged in (*beginnings, *flipped):
        file.write_bytes(damaged)
        assert measure_ranges(small_graph(), "0" * 64, ["b"], calibration) == first
