from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.predict import predict_source
from m2h_deploy.sources.source import Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from m2h_deploy.temporal import FilterSettings, TemporalFilter

FRAMES = 5

#: The network has random weights, and what it sees differs from frame to frame.
SETTINGS = FilterSettings(depth_gate_rel=0.5)


@pytest.fixture(scope="module")
def runtime(tiny_bundle):
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def walk() -> Source:
    """The same picture, brighter and darker, from a camera that turns a little; the third frame has no pose."""
    frame = render_room(4, 0, 112, 140)
    frames = []
    for index in range(FRAMES):
        image = (frame.image * (1 - 0.1 * (index % 3))).astype(np.uint8)
        pose = np.eye(4)
        pose[0, 3] = 0.01 * index
        frames.append(SourceFrame(f"f{index}", image, 7 + index / 10, pose if index != 2 else None))
    return Source(FRAMES, lambda: iter(frames))


def camera():
    return render_room(4, 0, 112, 140).intrinsics


@pytest.fixture(scope="module")
def expected(runtime, walk):
    """Raw and filtered predictions, one after the other."""
    temporal = TemporalFilter(camera(), SETTINGS)
    raw = [runtime(frame.image) for frame in walk.read()]
    fused = [temporal(one, frame.pose, frame.timestamp) for one, frame in zip(raw, walk.read(), strict=True)]
    # Most of the depth of random weights is at the end of its range.
    assert all((raw[i].normals != fused[i].normals).mean() > 0.5 for i in (1, 3, 4))
    assert (raw[2].depth == fused[2].depth).all()
    return fused


@pytest.mark.parametrize("reuse", [False, True])
def test_a_stream_filters_in_the_order_of_the_frames(runtime, walk, expected, reuse) -> None:
    stream = Stream(runtime, walk, reuse=reuse, temporal=TemporalFilter(camera(), SETTINGS))
    count = 0
    for (_, _, _, got), want in zip(stream, expected, strict=True):
        for task in ("depth", "semantics", "normals", "edges"):
            # SIMD loops round differently at the ends of arrays.
            np.testing.assert_allclose(getattr(got, task), getattr(want, task), atol=1e-6)
        assert set(got.timings) >= {"preprocess", "inference", "postprocess"}
        if reuse:  # what the caller does with the arrays must not change the next frame
            for task in ("depth", "semantics", "normals", "edges"):
                getattr(got, task)[:] = 0
        count += 1
    assert count == FRAMES


def test_predict_filters_and_averages_the_time_of_each_stage(runtime, walk, expected) -> None:
    class Keep:
        wanted, kept = True, []

        def add(self, frame, prediction):
            self.kept.append(prediction)

    summary = predict_source(runtime, walk, [keep := Keep()], temporal=TemporalFilter(camera(), SETTINGS))
    for got, want in zip(keep.kept, expected, strict=True):
        np.testing.assert_array_equal(got.depth, want.depth)
    assert summary.timings["filter_ms"] > 0


def test_a_camera_that_is_not_known_is_reported_and_the_frames_go_on(runtime, walk) -> None:
    problems: list[str] = []
    stream = Stream(runtime, walk, temporal=TemporalFilter(), on_problem=problems.append)
    assert len(list(stream)) == FRAMES
    assert problems == ["temporal filter: the camera's intrinsics are not set"] * (FRAMES - 1)


def test_unknown_options_are_refused(runtime, walk) -> None:
    with pytest.raises(M2HError, match="timeout"):
        Stream(runtime, walk, timeout=0)
    with pytest.raises(TypeError, match="tempo"):
        Stream(runtime, walk, tempo=1)
