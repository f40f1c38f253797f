"""A stream answers frames in order, survives what fails, and ends when it is told to."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.sources import Skipped, Source, SourceFrame, without_password
from m2h_deploy.stream.stream import Stream
from tests.engines_at_no_cost import NoCost


@pytest.fixture
def bundle(tiny_bundle):
    return load_bundle(tiny_bundle)


def picture(index: int, side: int = 32) -> np.ndarray:
    """A picture that tells its number: the mean of the network's input grows with it."""
    return np.full((side, side, 3), index % 256, np.uint8)


def frames(count: int, *, live: bool = False, pause: float = 0.0, side: int = 32) -> Source:
    def read():
        for index in range(count):
            if pause:
                time.sleep(pause)
            yield SourceFrame(f"f{index}", picture(index, side))

    return Source(None if live else count, read, live)


class Gate(NoCost):
    """An engine that waits until it is let go, frame by frame."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, image, out=None):
        self.entered.release()
        self.leave.acquire()
        return super().run(image, out)


@pytest.fixture
def short_backoff(monkeypatch) -> None:
    monkeypatch.setattr("m2h_deploy.stream.stream.FIRST_BACKOFF", 0.01)


def settled(stream: Stream, canceled: int = 0) -> None:
    """Every frame that was read had its fate before the stream was closed, but for those that closing canceled."""
    assert stream.health.in_work == 0
    assert stream.health.canceled == canceled


def test_a_queue_answers_every_frame_in_order(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime, Stream(runtime, frames(50)) as stream:
        answers = list(stream)
    assert stream.policy == "queue"
    assert [answer.id for answer in answers] == list(range(50))
    assert all((answer.image == answer.id).all() for answer in answers)
    stamps = [answer.timestamp for answer in answers]
    assert stamps == sorted(stamps)
    assert all(set(answer.prediction.timings) == {"preprocess", "inference", "postprocess"} for answer in answers)
    assert (stream.health.delivered, stream.health.ok) == (50, True)


def test_the_answer_belongs_to_its_frame(bundle):
    """The engine gives the mean of its input as depth: what was read, computed and delivered is one frame."""

    class Mean(NoCost):
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


def test_latest_answers_the_newest_frame_and_counts_what_it_threw_out(bundle):
    engine = Gate(bundle)
    with Runtime(bundle, engine) as runtime:
        stream = Stream(runtime, frames(30), policy="latest")
        answers = iter(stream)
        first: list[int] = []
        reader = threading.Thread(target=lambda: first.extend(answer.id for answer in answers))
        reader.start()
        engine.entered.acquire()  # the engine has a frame, and the source runs on to its end
        while stream.health.read < 30:
            time.sleep(0.001)
        for _ in range(3):
            engine.leave.release()
        reader.join(20)
    assert first[-1] == 29
    assert len(first) < 30
    assert stream.health.dropped == 30 - len(first)
    settled(stream)


def test_the_policy_follows_the_source(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime:
        assert Stream(runtime, frames(1)).policy == "queue"
        assert Stream(runtime, frames(1, live=True)).policy == "latest"
        assert Stream(runtime, frames(1, live=True), policy="queue").policy == "queue"


def test_a_queue_is_bounded(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime:
        stream = Stream(runtime, frames(10_000))
        answers = iter(stream)
        next(answers)
        time.sleep(0.2)  # time enough to read it all, were there no bound
        assert stream.health.read < 30
        answers.close()
    assert stream.health.canceled == stream.health.read - 1


def test_corrupt_frames_are_counted_and_the_others_answered(bundle):
    def read():
        yield SourceFrame("good", picture(1))
        yield M2HError("broken.png is not a readable image")
        yield Skipped("a depth map")
        yield SourceFrame("deep", np.zeros((32, 32, 3), np.uint16))
        yield SourceFrame("dot", np.zeros((1, 1, 3), np.uint8))
        yield SourceFrame("good", picture(2))

    told: list[str] = []
    with Runtime(bundle, NoCost(bundle)) as runtime, Stream(runtime, Source(6, read), on_problem=told.append) as stream:
        assert [answer.id for answer in stream] == [0, 4]
    assert (stream.health.read, stream.health.corrupt, stream.health.ok) == (5, 3, False)
    assert "broken.png" in told[0]
    assert tuple(told) == stream.health.problems
    settled(stream)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", ["depth", "semantics", "normals", "edges"])
def test_outputs_that_are_no_numbers_are_not_delivered(bundle, task, value):
    class Sick(NoCost):
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


def test_an_engine_that_raises_costs_the_frame(bundle):
    class Raises(NoCost):
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
    engines: list[NoCost] = []

    def reopen():
        engines.append(NoCost(bundle) if engines else Gate(bundle))
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


def test_an_engine_that_comes_back_while_another_is_opened_makes_room_for_it(bundle):
    gate = Gate(bundle)
    working: list[int] = []

    class Counted(NoCost):
        def run(self, image, out=None):
            working.append(sum(thread.name == "m2h-infer" for thread in threading.enumerate()))
            return super().run(image, out)

    def reopen():
        for _ in range(10):
            gate.leave.release()
        time.sleep(0.3)  # time enough for the thread to return, and to take another frame if it did
        return Counted(bundle)

    with Runtime(bundle, gate, reopen=reopen) as runtime:
        with Stream(runtime, frames(6), timeout=0.2) as stream:
            assert [answer.id for answer in stream] == [1, 2, 3, 4, 5]
        assert working == [1] * 5
        settled(stream)


def test_waiting_for_another_caller_is_not_being_stuck(bundle):
    with Runtime(bundle, NoCost(bundle), reopen=lambda: NoCost(bundle)) as runtime:
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


def test_an_engine_that_cannot_be_opened_again_is_waited_for(bundle):
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

    with Runtime(bundle, NoCost(bundle)) as runtime:
        stream = Stream(runtime, Source(None, read, live=True), policy="queue", reconnect=3)
        answers = iter(stream)
        assert [next(answers).id for _ in range(6)] == list(range(6))
        answers.close()
    assert stream.health.reconnects >= 2
    assert "cannot open camera 0" in stream.health.problems
    assert stream.health.canceled == stream.health.read - 6


def test_a_camera_that_stays_away_ends_the_stream_after_what_it_gave(bundle, short_backoff):
    opened = []

    def read():
        opened.append(1)
        if len(opened) > 1:
            raise M2HError("cannot open camera 0")
        yield SourceFrame("f", picture(0))

    ids = []
    runtime = Runtime(bundle, NoCost(bundle))
    with runtime, pytest.raises(M2HError, match="did not come back after 2 tries"):
        for answer in Stream(runtime, Source(None, read, live=True), reconnect=2):
            ids.append(answer.id)
    assert ids == [0]
    assert len(opened) == 3


def test_a_source_that_breaks_ends_the_stream_after_what_it_gave(bundle):
    def read():
        yield SourceFrame("f", picture(0))
        raise ValueError("surprise")

    ids = []
    with Runtime(bundle, NoCost(bundle)) as runtime, pytest.raises(M2HError, match="the source failed: surprise"):
        for answer in Stream(runtime, Source(2, read)):
            ids.append(answer.id)
    assert ids == [0]


def test_closing_early_cancels_what_is_on_its_way(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime, Stream(runtime, frames(1000)) as stream:
        for answer in stream:
            if answer.id == 10:
                break
    health = stream.health
    assert health.delivered == 11
    assert health.canceled == health.read - 11
    assert not [thread for thread in stream._threads if thread.is_alive()]
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
    with Runtime(bundle, NoCost(bundle)) as runtime:
        with Stream(runtime, frames(2, side=64), resolution="network") as stream:
            assert {answer.prediction.depth.shape for answer in stream} == {(112, 140)}
        with pytest.raises(M2HError, match="choose one of image, network"):
            Stream(runtime, frames(1), resolution="full")


@pytest.mark.parametrize("options", [{"timeout": 0}, {"policy": "newest"}])
def test_options_that_make_no_stream_are_refused(bundle, options):
    with Runtime(bundle, NoCost(bundle)) as runtime, pytest.raises(M2HError):
        Stream(runtime, frames(1), **options)


def test_a_runtime_may_be_called_while_it_streams(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime, Stream(runtime, frames(200)) as stream:
        for answer in stream:
            if answer.id % 20 == 0:
                assert runtime(picture(1)).depth is not None
    assert stream.health.delivered == 200


def test_a_video_is_a_stream(bundle, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for index in range(5):
        writer.write(render_room(1, index, height=96, width=128).image)
    writer.release()
    with Runtime(bundle, NoCost(bundle)) as runtime, Stream(runtime, tmp_path / "v.avi") as stream:
        assert [answer.id for answer in stream] == list(range(5))
    (tmp_path / "v.avi").write_bytes((tmp_path / "v.avi").read_bytes()[:-2000])
    told: list[str] = []
    with (
        Runtime(bundle, NoCost(bundle)) as runtime,
        Stream(runtime, tmp_path / "v.avi", on_problem=told.append) as stream,
    ):
        answers = list(stream)
    assert 0 < len(answers) < 5
    assert stream.health.corrupt == 1
    assert told == [f"{tmp_path / 'v.avi'} is cut short: it has {len(answers)} of 5 frames; copy it again"]


def test_a_network_stream_that_is_not_there_is_named_without_its_password(bundle):
    with Runtime(bundle, NoCost(bundle)) as runtime, pytest.raises(M2HError) as error:
        Stream(runtime, "rtsp://user:secret@127.0.0.1:9/room")
    assert str(error.value) == "cannot open stream rtsp://127.0.0.1:9/room"
    assert without_password("http://camera/video") == "http://camera/video"


def test_there_is_no_camera_99(bundle):
    if Path("/dev/video99").exists():
        pytest.skip("there is one")
    with Runtime(bundle, NoCost(bundle)) as runtime, pytest.raises(M2HError, match="cannot open camera 99"):
        Stream(runtime, "99")
