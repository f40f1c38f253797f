"""Test that calibration chooses frames reproducibly, computes correct ranges, and measures them once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from engines.precision.calibration import (
    Calibration,
    CalibrationFrames,
    frames_digest,
    magnitude,
    measure_ranges,
    select_frames,
)
from m2h_deploy.errors import M2HError
from tests.commands import refused
from tests.engines.graphs import SIDE, frames, small_graph


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


def convolved(calibration: Calibration) -> list[np.ndarray]:
    """Return the first convolution's results on the calibration frames, computed here."""
    weights = onnx.numpy_helper.to_array(small_graph().graph.initializer[0])
    results = []
    for frame in calibration.frames.frames:
        padded = np.pad(frame[0], ((0, 0), (1, 1), (1, 1)))
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        results.append(np.einsum("chwij,ocij->ohw", patches, weights))
    return results


def test_max_takes_the_smallest_and_the_largest_value(calibration):
    ranges = measure_ranges(small_graph(), "0" * 64, ["image", "a", "b"], calibration)
    frames, results = np.stack(calibration.frames.frames), np.stack(convolved(calibration))
    assert ranges["image"] == pytest.approx((frames.min(), frames.max()))
    assert ranges["a"] == pytest.approx((results.min(), results.max()), rel=1e-4)
    assert ranges["b"] == pytest.approx((0, results.max()), rel=1e-4)  # after the ReLU
    assert magnitude(ranges["a"]) == pytest.approx(np.abs(results).max(), rel=1e-4)


def test_percentile_and_entropy_clip_what_is_rare(calibration):
    frames = [frame.copy() for frame in calibration.frames.frames]
    frames[1][0, 0, 0, 0] = 50.0
    outlier = replace(calibration, frames=replace(calibration.frames, frames=tuple(frames)), cache=None)
    names = ["image"]
    assert measure_ranges(small_graph(), "", names, outlier)["image"][1] == 50.0
    clipped = measure_ranges(small_graph(), "", names, replace(outlier, method="percentile", percentile=99.8))["image"]
    values = np.stack(frames)
    assert values.min() <= clipped[0] < -2
    assert 2 < clipped[1] < 6
    low, high = measure_ranges(small_graph(), "", names, replace(outlier, method="entropy"))["image"]
    assert -50 < low < 0 < high < 50


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
