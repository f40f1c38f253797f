"""Soak test: memory is constant, ids match their frames, every future is resolved, and Ctrl-C ends the stream."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.sources.source import Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def numbered(count: int) -> Source:
    """A source of small pictures that encode their own number."""

    def read():
        for index in range(count):
            image = np.zeros((16, 16, 3), np.uint8)
            image[0, 0] = (index & 255, (index >> 8) & 255, index >> 16)
            yield SourceFrame("f", image)

    return Source(count, read)


def number_of(image: np.ndarray) -> int:
    blue, green, red = (int(value) for value in image[0, 0])
    return blue | green << 8 | red << 16


def soak_stream(runtime: Runtime, count: int, settle: float = 0.3) -> tuple[int, int]:
    """Stream `count` numbered frames; return the memory in the steady state and at the end."""
    before = 0
    with Stream(runtime, numbered(count), resolution="network", reuse=True) as stream:
        for expected, answer in enumerate(stream):
            assert answer.id == expected == number_of(answer.image)
            if answer.id == int(settle * count):
                before = resident()
    assert (stream.health.delivered, stream.health.in_work, stream.health.ok) == (count, 0, True)
    return before, resident()


def soak_submit(runtime: Runtime, images: list[np.ndarray], count: int, group: int = 50) -> tuple[int, int]:
    """Submit `count` frames in groups; return the memory after the first groups and at the end."""
    before = 0
    for start in range(0, count, group):
        futures = [runtime.submit(images[i % len(images)], resolution="network") for i in range(start, start + group)]
        assert [future.frame_id for future in futures] == list(range(start, start + group))
        assert all(future.result(60) is not None for future in futures)
        if start <= count // 3:
            before = resident()
    return before, resident()


def flat(memory: tuple[int, int]) -> None:
    before, after = memory
    assert after < 1.01 * before, f"memory grew from {before} to {after} bytes"


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_soak_on_a_fake_engine(tiny_bundle, count):
    bundle = load_bundle(tiny_bundle)
    with Runtime(bundle, FakeEngine(bundle)) as runtime:
        flat(soak_stream(runtime, count))
        flat(soak_submit(runtime, [np.zeros((16, 16, 3), np.uint8)], count // 10))


@pytest.mark.parametrize("count", [30, pytest.param(2_000, marks=pytest.mark.slow)])
def test_soak_on_the_real_engine(tiny_bundle, count):
    room = render_room(1, 0, height=60, width=80).image
    images = [np.ascontiguousarray(np.roll(room, 8 * index, axis=1)) for index in range(8)]
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        expected = [runtime(image, resolution="network").depth for image in images]
        source = Source(count, lambda: (SourceFrame("f", images[i % 8]) for i in range(count)))
        before = 0
        with Stream(runtime, source, resolution="network", reuse=True) as stream:
            for index, answer in enumerate(stream):
                assert answer.id == index
                assert np.array_equal(answer.prediction.depth, expected[index % 8])
                if index == count // 3:
                    before = resident()
        assert stream.health.delivered == count
        flat((before, resident()))


#: An endless stream, and futures, on a fake engine; prints their outcomes.
PROGRAM = """
import sys
import numpy as np
from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.sources.source import Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine

def read():
    while True:
        yield SourceFrame("f", np.zeros((64, 64, 3), np.uint8))

bundle = load_bundle(sys.argv[1])
futures = []
try:
    runtime = Runtime(bundle, FakeEngine(bundle))
    stream = Stream(runtime, Source(None, read))
    print("running", flush=True)
    with runtime, stream:
        for answer in stream:
            futures.append(runtime.submit(answer.image))
            if len(futures) > 64:  # nothing else bounds the queue where the machine is busy
                futures.pop(0).result()
except KeyboardInterrupt:
    health = stream.health
    done = all(future.done() for future in futures)
    print("stopped", done, health.in_work, health.read == health.delivered + health.canceled)
"""


def interrupted(bundle: Path, wait: float, number: signal.Signals = signal.SIGINT) -> tuple[str, float]:
    """Interrupt the program `wait` seconds after its start; return its output and the seconds until it ends."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "running\n"
        time.sleep(wait)
        start = time.monotonic()
        program.send_signal(number)
        said = program.stdout.read()
        program.wait(30)
        return said, time.monotonic() - start
    finally:
        program.kill()
        program.stdout.close()


def test_ctrl_c_delivers_or_cancels_everything(tiny_bundle):
    for wait in (0.0, 0.5):
        said, _ = interrupted(tiny_bundle, wait)
        assert said == "stopped True 0 True\n"


@pytest.mark.slow
def test_ctrl_c_at_any_moment_ends_the_program_within_two_seconds(tiny_bundle):
    moments = random.Random(0)
    for _ in range(30):
        said, seconds = interrupted(tiny_bundle, moments.uniform(0, 1))
        assert said == "stopped True 0 True\n"
        assert seconds < 2
