"""Test that the frame loop reports the outcome of each frame, and that a bad frame does not affect others."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy import M2HError, Prediction
from m2h_deploy.predict import predict_source, timing_summary
from m2h_deploy.sinks import Sink
from m2h_deploy.sources.source import Skipped, Source, SourceFrame

IMAGE = np.zeros((16, 16, 3), np.uint8)
TIMINGS = {"preprocess": 1.0, "inference": 8.0, "postprocess": 1.0}


class DepthOnly:
    """An engine that gives the image's first pixel as depth: 255 stands for NaN, 254 for an error."""

    tasks = ("depth",)

    def __call__(self, image: np.ndarray) -> Prediction:
        value = float(image[0, 0, 0])
        if value == 254:
            raise M2HError("the engine failed")
        depth = np.full(image.shape[:2], np.nan if value == 255 else value, np.float32)
        return Prediction(depth, None, None, None, TIMINGS)


class Kept(Sink):
    def __init__(self, most: int = 100) -> None:
        self.names: list[str] = []
        self._most = most

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        self.names.append(frame.name)
        self.wanted = len(self.names) < self._most


def frame(name: str, value: int = 0) -> SourceFrame:
    return SourceFrame(name, np.full_like(IMAGE, value))


def source_of(*items: object) -> Source:
    def read():
        for item in items:
            if item is KeyboardInterrupt:
                raise KeyboardInterrupt
            yield item

    return Source(len(items), read)


def test_each_item_has_an_outcome_and_only_good_frames_reach_the_sinks():
    kept, outcomes = Kept(), []
    items = (
        frame("a"),
        Skipped("b is a depth map"),
        M2HError("c.png: damaged"),
        frame("room_d", 254),
        frame("room_e", 255),
    )
    summary = predict_source(DepthOnly(), source_of(*items, frame("f")), [kept], progress=outcomes.append)
    assert kept.names == ["a", "f"]
    assert [outcome.status for outcome in outcomes] == ["done", "skipped", "failed", "failed", "failed", "done"]
    assert summary.read == 5 and not summary.interrupted
    assert summary.failed == (
        "c.png: damaged",
        "room_d: the engine failed",
        "room_e: the engine gave NaN or infinity",
    )
    assert summary.timings["frames"] == 2


@pytest.mark.parametrize(("limit", "most", "names"), [(2, 100, ["a", "b"]), (None, 1, ["a"]), (None, 100, ["a", "b"])])
def test_the_loop_ends_at_the_limit_when_a_sink_has_enough_or_at_an_interrupt(limit, most, names):
    kept = Kept(most)
    source = source_of(frame("a"), frame("b"), KeyboardInterrupt, frame("c"))
    summary = predict_source(DepthOnly(), source, [kept], limit=limit)
    assert kept.names == names
    assert summary.interrupted == (limit is None and most == 100)


def test_a_sink_that_cannot_write_ends_the_loop():
    class Full(Kept):
        def add(self, frame: SourceFrame, prediction: Prediction) -> None:
            raise M2HError("no space left")

    with pytest.raises(M2HError, match="no space left"):
        predict_source(DepthOnly(), source_of(frame("a")), [Full()])


def test_the_first_frame_is_timed_only_if_it_is_the_only_one():
    slow = dict.fromkeys(TIMINGS, 1000.0)
    assert timing_summary([]) == {"frames": 0}
    assert timing_summary([slow])["inference_ms"] == 1000
    assert timing_summary([slow, TIMINGS, TIMINGS]) == {
        "frames": 3,
        "preprocess_ms": 1,
        "inference_ms": 8,
        "postprocess_ms": 1,
        "frames_per_second": 100,
    }
