"""Test that a stream recovers from failing frames, engines and sources, and reports when it cannot."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime
from m2h_deploy.sources.source import Skipped, Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine
from tests.stream.sources import Gate, frames, picture, settled


def test_corrupt_frames_are_counted_and_the_others_answered(bundle):
    def read():
        yield SourceFrame("good", picture(1))
        yield M2HError("broken.png is not a readable image")
        yield Skipped("a depth map")
        yield SourceFrame("deep", np.zeros((32, 32, 3), np.uint16))
        yield SourceFrame("dot", np.zeros((1, 1, 3), np.uint8))
        yield SourceFrame("good", picture(2))

    told: list[str] = []
    with (
        Runtime(bundle, FakeEngine(bundle)) as runtime,
        Stream(runtime, Source(6, read), on_problem=told.append) as stream,
    ):
        assert [answer.id for answer in stream] == [0, 4]
    assert (stream.health.read, stream.health.corrupt, stream.health.ok) == (5, 3, False)
    assert "broken.png" in told[0]
    assert tuple(told) == stream.health.problems
    settled(stream)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", ["depth", "semantics", "normals", "edges"])
def test_non_finite_outputs_are_not_delivered(bundle, task, value):
    class Sick(FakeEngine):
        count = 0

        def run(self, image, out=None):
            outputs = super().run(image, out)
            outputs[task].flat[-1] = value if self.count == 1 else 0
            self.count += 1
            return outputs

    with Runtime(bundle, Sick(bundle)) as runtime, Stream(runtime, frames(4)) as stream:
        assert [answer.id for answer in stream] == [0, 2, 3]
    assert stream.health.nonfinite == 1
    assert f"frame 1: {task} not finite" in stream.health.problems
    settled(stream)


def test_an_engine_error_fails_only_its_frame(bundle):
    class Raises(FakeEngine):
        count = 0

        def run(self, image, out=None):
            self.count += 1
            if self.count == 2:
                raise RuntimeError("out of memory\nsecond line")
            return super().run(image, out)

    with Runtime(bundle, Raises(bundle)) as runtime, Stream(runtime, frames(4)) as stream:
        assert [answer.id for answer in stream] == [0, 2, 3]
    assert stream.health.failed == 1
    assert "frame 1: out of memory" in stream.health.problems
    settled(stream)


def test_a_stuck_engine_is_opened_again(bundle):
    engines: list[FakeEngine] = []

    def reopen():
        engines.append(FakeEngine(bundle) if engines else Gate(bundle))
        return engines[-1]

    with Runtime(bundle, reopen(), reopen=reopen) as runtime:
        with Stream(runtime, frames(5), timeout=0.2) as stream:
            assert [answer.id for answer in stream] == [1, 2, 3, 4]
        assert (stream.health.stuck, stream.health.restarts) == (1, 1)
        assert runtime.backend is engines[1]
        assert "did not return" in stream.health.problems[0]
        settled(stream)
        engines[0].leave.release()
        assert runtime(picture(0)).depth is not None


def test_a_stuck_engine_that_returns_does_not_run_beside_the_new_one(bundle):
    gate = Gate(bundle)
    working: list[int] = []

    class Counted(FakeEngine):
        def run(self, image, out=None):
            working.append(sum(thread.name == "m2h-infer" for thread in threading.enumerate()))
            return super().run(image, out)

    def reopen():
        for _ in range(10):
            gate.leave.release()
        time.sleep(0.3)  # enough time for the thread to return, and to take another frame if it were wrong
        return Counted(bundle)

    with Runtime(bundle, gate, reopen=reopen) as runtime:
        with Stream(runtime, frames(6), timeout=0.2) as stream:
            assert [answer.id for answer in stream] == [1, 2, 3, 4, 5]
        assert working == [1] * 5
        settled(stream)


def test_waiting_for_another_caller_does_not_count_as_stuck(bundle):
    with Runtime(bundle, FakeEngine(bundle), reopen=lambda: FakeEngine(bundle)) as runtime:
        stream = Stream(runtime, frames(3), timeout=0.1)
        answers: list[int] = []
        reader = threading.Thread(target=lambda: answers.extend(answer.id for answer in stream))
        with runtime.engine.lock:
            reader.start()
            time.sleep(0.6)
        reader.join(20)
    assert answers == [0, 1, 2]
    assert (stream.health.stuck, stream.health.restarts) == (0, 0)


def test_an_engine_that_is_always_stuck_ends_the_stream_in_one_line(bundle):
    runtime = Runtime(bundle, Gate(bundle), reopen=lambda: Gate(bundle))
    with runtime, pytest.raises(M2HError, match="stuck 4 times in a row"):
        list(Stream(runtime, frames(20), timeout=0.05))


def test_a_stuck_engine_that_cannot_be_reopened_is_awaited(bundle):
    engine = Gate(bundle)
    with Runtime(bundle, engine) as runtime:
        stream = Stream(runtime, frames(3), timeout=0.05)
        answers: list[int] = []
        reader = threading.Thread(target=lambda: answers.extend(answer.id for answer in stream))
        reader.start()
        while not stream.health.stuck:
            time.sleep(0.01)
        for _ in range(3):
            engine.leave.release()
        reader.join(20)
    assert stream.health.stuck >= 1
    assert len(answers) == 3 - stream.health.stuck
    settled(stream)


def test_a_camera_that_dies_is_opened_again(bundle, short_backoff):
    opened = []

    def read():
        opened.append(len(opened))
        if len(opened) in (2, 3):
            raise M2HError("cannot open camera 0")
        for index in range(2):
            yield SourceFrame("f", picture(index))

    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        stream = Stream(runtime, Source(None, read, live=True), policy="queue", reconnect=3)
        answers = iter(stream)
        assert [next(answers).id for _ in range(6)] == list(range(6))
        answers.close()
    assert stream.health.reconnects >= 2
    assert "cannot open camera 0" in stream.health.problems
    assert stream.health.canceled == stream.health.read - 6


def test_a_camera_that_does_not_return_ends_the_stream_after_its_frames(bundle, short_backoff):
    opened = []

    def read():
        opened.append(1)
        if len(opened) > 1:
            raise M2HError("cannot open camera 0")
        yield SourceFrame("f", picture(0))

    ids = []
    runtime = Runtime(bundle, FakeEngine(bundle))
    with runtime, pytest.raises(M2HError, match="did not come back after 2 tries"):
        for answer in Stream(runtime, Source(None, read, live=True), reconnect=2):
            ids.append(answer.id)
    assert ids == [0]
    assert len(opened) == 3


def test_a_source_that_fails_ends_the_stream_after_its_frames(bundle):
    def read():
        yield SourceFrame("f", picture(0))
        raise ValueError("surprise")

    ids = []
    with Runtime(bundle, FakeEngine(bundle)) as runtime, pytest.raises(M2HError, match="the source failed: surprise"):
        for answer in Stream(runtime, Source(2, read)):
            ids.append(answer.id)
    assert ids == [0]
