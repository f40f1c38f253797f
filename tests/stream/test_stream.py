"""Test that a stream answers frames in order and ends on request."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.sources.source import Source, SourceFrame, without_password
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine
from tests.stream.sources import Gate, frames, picture, settled


def test_a_queue_answers_every_frame_in_order(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime, Stream(runtime, frames(50)) as stream:
        answers = list(stream)
    assert stream.policy == "queue"
    assert [answer.id for answer in answers] == list(range(50))
    assert all((answer.image == answer.id).all() for answer in answers)
    stamps = [answer.timestamp for answer in answers]
    assert stamps == sorted(stamps)
    assert all(set(answer.prediction.timings) == {"preprocess", "inference", "postprocess"} for answer in answers)
    assert (stream.health.delivered, stream.health.ok) == (50, True)


def test_the_answer_belongs_to_its_frame(bundle):
    """The engine returns the mean of its input as depth, which identifies the frame."""

    class Mean(FakeEngine):
        def run(self, image, out=None):
            outputs = super().run(image, out)
            outputs["depth"][:] = image.mean() + 5
            return outputs

    with Runtime(bundle, Mean(bundle)) as runtime:
        expected = [float(runtime(picture(index)).depth[0, 0]) for index in range(40)]
        assert len(set(expected)) == 40
        for reuse in (False, True):
            with Stream(runtime, frames(40), reuse=reuse) as stream:
                assert [float(answer.prediction.depth[0, 0]) for answer in stream] == expected


def test_a_stream_computes_what_a_call_computes(tiny_bundle, tmp_path):
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), render_room(1, index, height=60, width=80).image)
    with Runtime.load(tiny_bundle, threads=1) as runtime, Stream(runtime, tmp_path) as stream:
        for answer in stream:
            expected = runtime(answer.image)
            for task in ("depth", "semantics", "normals", "edges"):
                np.testing.assert_array_equal(getattr(answer.prediction, task), getattr(expected, task))
    assert stream.health.delivered == 4


def test_latest_answers_the_newest_frame_and_counts_dropped_ones(bundle):
    engine = Gate(bundle)
    with Runtime(bundle, engine) as runtime:
        stream = Stream(runtime, frames(30), policy="latest")
        answers = iter(stream)
        first: list[int] = []
        reader = threading.Thread(target=lambda: first.extend(answer.id for answer in answers))
        reader.start()
        engine.entered.acquire()  # the engine has a frame, and the source continues to its end
        while stream.health.read < 30:
            time.sleep(0.001)
        for _ in range(3):
            engine.leave.release()
        reader.join(20)
    assert first[-1] == 29
    assert len(first) < 30
    assert stream.health.dropped == 30 - len(first)
    settled(stream)


def test_the_default_policy_depends_on_the_source(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        assert Stream(runtime, frames(1)).policy == "queue"
        assert Stream(runtime, frames(1, live=True)).policy == "latest"
        assert Stream(runtime, frames(1, live=True), policy="queue").policy == "queue"


def test_a_queue_is_bounded(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        stream = Stream(runtime, frames(10_000))
        answers = iter(stream)
        next(answers)
        time.sleep(0.2)  # enough time to read all frames if there were no bound
        assert stream.health.read < 30
        answers.close()
    assert stream.health.canceled == stream.health.read - 1


def test_closing_early_cancels_frames_in_flight(bundle):
    before = set(threading.enumerate())
    with Runtime(bundle, FakeEngine(bundle)) as runtime, Stream(runtime, frames(1000)) as stream:
        for answer in stream:
            if answer.id == 10:
                break
    health = stream.health
    assert health.delivered == 11
    assert health.canceled == health.read - 11
    started = set(threading.enumerate()) - before
    assert not [
        thread for thread in started if thread.name in {"m2h-read", "m2h-infer", "m2h-postprocess", "m2h-watch"}
    ]
    with pytest.raises(M2HError, match="runs once"):
        next(iter(stream))


def test_closing_does_not_wait_for_an_engine_or_a_source_that_is_stuck(bundle):
    engine, held = Gate(bundle), threading.Event()

    def read():
        yield SourceFrame("f", picture(0))
        held.wait()

    runtime = Runtime(bundle, engine)
    stream = Stream(runtime, Source(None, read, live=True))
    threading.Thread(target=lambda: list(stream), daemon=True).start()
    engine.entered.acquire()
    stream.close()
    runtime.close()
    settled(stream, canceled=1)
    held.set()
    engine.leave.release()


def test_results_of_the_networks_size(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        with Stream(runtime, frames(2, side=64), resolution="network") as stream:
            assert {answer.prediction.depth.shape for answer in stream} == {(112, 140)}
        with pytest.raises(M2HError, match="choose one of image, network"):
            Stream(runtime, frames(1), resolution="full")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"policy": "newest"}])
def test_invalid_options_are_refused(bundle, options):
    with Runtime(bundle, FakeEngine(bundle)) as runtime, pytest.raises(M2HError):
        Stream(runtime, frames(1), **options)


def test_a_caller_with_all_queues_full_may_use_the_runtime(bundle):
    """The engine's lock is free while a finished frame waits for its place."""
    with Runtime(bundle, FakeEngine(bundle)) as runtime, Stream(runtime, frames(60), policy="queue") as stream:
        for answer in stream:
            if answer.id == 5:
                deadline = time.monotonic() + 30
                before = -1
                while stream.health.read != before and time.monotonic() < deadline:  # until every queue is full
                    before = stream.health.read
                    time.sleep(0.05)
                done = threading.Thread(target=runtime, args=(picture(1),), daemon=True)
                done.start()
                done.join(10)
                assert not done.is_alive()
    assert stream.health.delivered == 60


def test_a_runtime_may_be_called_while_it_streams(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime, Stream(runtime, frames(200)) as stream:
        for answer in stream:
            if answer.id % 20 == 0:
                assert runtime(picture(1)).depth is not None
    assert stream.health.delivered == 200


def test_a_video_is_a_stream(bundle, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for index in range(5):
        writer.write(render_room(1, index, height=96, width=128).image)
    writer.release()
    with Runtime(bundle, FakeEngine(bundle)) as runtime, Stream(runtime, tmp_path / "v.avi") as stream:
        assert [answer.id for answer in stream] == list(range(5))
    (tmp_path / "v.avi").write_bytes((tmp_path / "v.avi").read_bytes()[:-2000])
    told: list[str] = []
    with (
        Runtime(bundle, FakeEngine(bundle)) as runtime,
        Stream(runtime, tmp_path / "v.avi", on_problem=told.append) as stream,
    ):
        answers = list(stream)
    assert 0 < len(answers) < 5
    assert stream.health.corrupt == 1
    assert told == [f"{tmp_path / 'v.avi'} is cut short: it has {len(answers)} of 5 frames; copy it again"]


def test_an_unreachable_network_stream_is_named_without_its_password(bundle):
    with Runtime(bundle, FakeEngine(bundle)) as runtime, pytest.raises(M2HError) as error:
        Stream(runtime, "rtsp://user:secret@127.0.0.1:9/room")
    assert str(error.value) == "cannot open stream rtsp://127.0.0.1:9/room"
    assert without_password("http://camera/video") == "http://camera/video"


def test_a_missing_camera_is_reported(bundle):
    if Path("/dev/video99").exists():
        pytest.skip("there is one")
    with Runtime(bundle, FakeEngine(bundle)) as runtime, pytest.raises(M2HError, match="cannot open camera 99"):
        Stream(runtime, "99")
