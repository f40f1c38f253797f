"""Frames, an engine that waits, and checks after a stream has ended."""

from __future__ import annotations

import threading
import time

import numpy as np

from m2h_deploy.sources.source import Source, SourceFrame
from m2h_deploy.stream.stream import Stream
from tests.fake_engine import FakeEngine


def picture(index: int, side: int = 32) -> np.ndarray:
    """Return a picture that encodes its number: the mean of the network's input grows with it."""
    return np.full((side, side, 3), index % 256, np.uint8)


def frames(count: int, *, live: bool = False, pause: float = 0.0, side: int = 32) -> Source:
    def read():
        for index in range(count):
            if pause:
                time.sleep(pause)
            yield SourceFrame(f"f{index}", picture(index, side))

    return Source(None if live else count, read, live)


class Gate(FakeEngine):
    """An engine that waits until it is released, frame by frame."""

    def __init__(self, bundle):
        super().__init__(bundle)
        self.entered, self.leave = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, image, out=None):
        self.entered.release()
        self.leave.acquire()
        return super().run(image, out)


def settled(stream: Stream, canceled: int = 0) -> None:
    """Check that no frame is in flight, and that closing canceled `canceled` frames."""
    assert stream.health.in_work == 0
    assert stream.health.canceled == canceled
