"""Simulate a camera of fixed rate with an engine: the age of frames at delivery, and which frames are dropped.

Frame i arrives at i / rate, whether or not the previous one is done. While the engine works, frames wait in a buffer:
policy `latest` keeps one and replaces it with every new frame; policy `queue` keeps them in order and, if it is
bounded, rejects new ones when it is full. Which frames arrived during a run follows from the clock alone, so camera and
engine need no separate threads, and on a virtual clock the outcome is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from m2h_deploy.choices import QueuePolicy, check_choice
from m2h_deploy.errors import M2HError
from m2h_deploy.profiling.clock import Clock
from m2h_deploy.profiling.statistics import Summary, summarize

_SECOND = 1_000_000_000
_MILLISECOND = 1_000_000

#: Largest accepted camera rate, frames per second.
_MOST = 100_000.0


@dataclass(frozen=True)
class Camera:
    """Frame rate, number of frames and buffering of a camera.

    Raises:
        M2HError: A value is invalid.
    """

    rate: float
    """Frames per second."""
    frames: int
    policy: QueuePolicy = "latest"
    deadline_ms: float | None = None
    """Largest age of a frame at delivery; None: one period."""
    capacity: int | None = None
    """Largest number of waiting frames with `queue`; None: unlimited."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= _MOST:
            raise M2HError(f"camera rate {self.rate:g}: must be above 0 and at most {_MOST:g} frames a second")
        if self.frames < 1:
            raise M2HError(f"the camera gives {self.frames} frames in this time: give a longer --duration")
        check_choice("policy", self.policy, QueuePolicy)
        if self.deadline_ms is not None and not 0 < self.deadline_ms < float("inf"):
            raise M2HError(f"deadline {self.deadline_ms:g} ms: must be above 0")
        if self.capacity is not None and self.capacity < 1:
            raise M2HError(f"a queue of {self.capacity} frames: must hold at least one")

    @property
    def period_ms(self) -> float:
        """Milliseconds between two frames."""
        return 1000 / self.rate

    @property
    def limit_ms(self) -> float:
        """Deadline in milliseconds."""
        return self.period_ms if self.deadline_ms is None else self.deadline_ms


@dataclass(frozen=True)
class Delivery:
    """One delivered frame; times in nanoseconds of the clock."""

    frame: int
    arrived: int
    started: int
    delivered: int

    @property
    def age_ms(self) -> float:
        """Milliseconds from arrival to delivery."""
        return (self.delivered - self.arrived) / _MILLISECOND

    @property
    def service_ms(self) -> float:
        """Milliseconds that the engine took."""
        return (self.delivered - self.started) / _MILLISECOND


@dataclass(frozen=True)
class CameraRun:
    """A run of the camera, with the deliveries in order."""

    camera: Camera
    start: int
    deliveries: tuple[Delivery, ...]
    dropped: tuple[int, ...]
    """Frames that never reached the engine."""

    @property
    def misses(self) -> int:
        """Number of frames delivered after their deadline."""
        return sum(delivery.age_ms > self.camera.limit_ms for delivery in self.deliveries)

    @property
    def in_time(self) -> float:
        """Share of all frames delivered by their deadline; dropped frames count as missed."""
        return (len(self.deliveries) - self.misses) / self.camera.frames

    @property
    def age(self) -> Summary:
        """Milliseconds from arrival to delivery."""
        return summarize([delivery.age_ms for delivery in self.deliveries])

    @property
    def service(self) -> Summary:
        """Milliseconds that the engine took."""
        return summarize([delivery.service_ms for delivery in self.deliveries])

    @property
    def utilization(self) -> float:
        """Mean service time over the period: above 1 the engine cannot keep up."""
        return self.service.mean / self.camera.period_ms

    @property
    def delivered_rate(self) -> float:
        """Deliveries per second, from the first arrival to the last delivery."""
        return len(self.deliveries) * _SECOND / (self.deliveries[-1].delivered - self.start)


def run_camera(
    camera: Camera, serve: Callable[[int], object], clock: Clock, progress: Callable[[int], None] | None = None
) -> CameraRun:
    """Run `camera` with `serve`, which processes frame i, until every frame is delivered or dropped.

    A frame that arrives at the exact time of a delivery counts as present before the next one is taken. `progress` is
    called with the number of arrived frames.
    """
    start = clock.now()
    arrivals = [start + round(index * _SECOND / camera.rate) for index in range(camera.frames)]
    waiting: deque[int] = deque()
    deliveries: list[Delivery] = []
    dropped: list[int] = []
    coming = 0
    while waiting or coming < camera.frames:
        while coming < camera.frames and arrivals[coming] <= clock.now():
            dropped += _admit(coming, waiting, camera)
            coming += 1
        if progress is not None:
            progress(coming)
        if not waiting:
            clock.sleep_until(arrivals[coming])
            continue
        frame = waiting.popleft()
        started = clock.now()
        serve(frame)
        deliveries.append(Delivery(frame, arrivals[frame], started, clock.now()))
    return CameraRun(camera, start, tuple(deliveries), tuple(dropped))


def _admit(frame: int, waiting: deque[int], camera: Camera) -> list[int]:
    """Add an arrived frame to the buffer and return the frames that are dropped for it."""
    if camera.policy == "latest":
        displaced = list(waiting)
        waiting.clear()
        waiting.append(frame)
        return displaced
    if camera.capacity is not None and len(waiting) >= camera.capacity:
        return [frame]
    waiting.append(frame)
    return []
