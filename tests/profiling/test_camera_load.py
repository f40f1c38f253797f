"""Test age, drops and misses behind a camera of fixed rate against queueing theory.

A camera of period T in front of an engine of time S is the queue D/D/1. The expectations below are closed forms in
whole nanoseconds; the simulation runs on a virtual clock that only the engine and the waiting move.
"""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2h_deploy import M2HError
from m2h_deploy.profiling.camera_load import Camera, run_camera
from m2h_deploy.profiling.clock import RealClock
from tests.profiling.virtual_clock import VirtualClock

MS = 1_000_000


def simulate(camera: Camera, service_ns: int):
    clock = VirtualClock(start=12345)
    return run_camera(camera, lambda frame: clock.advance(service_ns), clock)


def queue_ages(period: int, service: int, frames: int) -> list[int]:
    """Frame i is delivered at max(i T + S, (i + 1) S): the queue grows by S - T a frame, or never begins."""
    return [max(service, (i + 1) * service - i * period) for i in range(frames)]


def latest_frames(period: int, service: int, frames: int) -> list[tuple[int, int]]:
    """Frame and age of each delivery: an engine slower than the camera never waits, so run k begins at k S and takes
    the newest frame, floor(k S / T), until that is the last one."""
    if service <= period:
        return [(i, service) for i in range(frames)]
    runs = next(k for k in itertools.count() if k * service // period >= frames - 1) + 1
    taken = [min(frames - 1, k * service // period) for k in range(runs)]
    return [(frame, (k + 1) * service - frame * period) for k, frame in enumerate(taken)]


periods = st.integers(1, 60).map(lambda ms: ms * MS)
services = st.integers(1, 200 * MS)
counts = st.integers(1, 80)


def camera_of(period: int, frames: int, **options) -> Camera:
    camera = Camera(rate=1e9 / period, frames=frames, **options)
    assert all(
        round(i * 1e9 / camera.rate) == i * period for i in range(frames)
    )  # the closed forms need exact arrivals
    return camera


@given(periods, services, counts)
def test_an_unbounded_queue_ages_every_frame_as_computed_and_drops_none(period, service, frames):
    run = simulate(camera_of(period, frames, policy="queue"), service)
    assert [delivery.frame for delivery in run.deliveries] == list(range(frames))
    assert [d.delivered - d.arrived for d in run.deliveries] == queue_ages(period, service, frames)
    assert run.dropped == ()
    assert run.misses == sum(age > period for age in queue_ages(period, service, frames))


@given(periods, services, counts)
def test_latest_takes_the_newest_frame_and_drops_the_rest_as_computed(period, service, frames):
    run = simulate(camera_of(period, frames, policy="latest"), service)
    expected = latest_frames(period, service, frames)
    assert [(d.frame, d.delivered - d.arrived) for d in run.deliveries] == expected
    assert sorted(run.dropped) == sorted(set(range(frames)) - {frame for frame, _ in expected})
    assert max(d.delivered - d.arrived for d in run.deliveries) < service + max(service, period)


@given(periods, services, counts, st.integers(1, 6))
def test_a_bounded_queue_never_grows_older_than_its_length_allows(period, service, frames, capacity):
    run = simulate(camera_of(period, frames, policy="queue", capacity=capacity), service)
    delivered = [d.frame for d in run.deliveries]
    assert delivered == sorted(delivered)
    assert sorted((*delivered, *run.dropped)) == list(range(frames))
    assert max(d.delivered - d.arrived for d in run.deliveries) <= (capacity + 1) * service
    if service <= period:
        assert run.dropped == ()


def test_an_engine_two_and_a_half_times_too_slow_answers_two_frames_of_five():
    run = simulate(Camera(rate=25, frames=1001, policy="latest"), 100 * MS)
    assert [d.frame for d in run.deliveries][:6] == [0, 2, 5, 7, 10, 12]
    assert {d.age_ms for d in run.deliveries} == {100.0, 120.0}
    assert len(run.deliveries) == pytest.approx(1001 * 0.4, abs=1)
    assert run.misses == len(run.deliveries)
    assert run.in_time == 0
    assert run.utilization == pytest.approx(2.5)
    assert run.delivered_rate == pytest.approx(10)


@pytest.mark.parametrize("policy", ["latest", "queue"])
def test_an_engine_that_keeps_up_answers_every_frame_in_its_own_time(policy):
    run = simulate(Camera(rate=50, frames=200, policy=policy), 15 * MS)
    assert len(run.deliveries) == 200
    assert (run.age.least, run.age.most) == (15.0, 15.0)
    assert (run.misses, run.dropped, run.in_time) == (0, (), 1.0)


def test_a_given_deadline_determines_which_frames_are_late():
    frames = Camera(rate=50, frames=10, policy="latest", deadline_ms=10)
    assert simulate(frames, 15 * MS).misses == 10
    assert simulate(Camera(rate=50, frames=10, deadline_ms=15), 15 * MS).misses == 0


def test_one_slow_frame_makes_those_behind_it_late_until_the_queue_is_empty():
    """With S = T / 2 after one frame of 4 T, the backlog of 3.5 T falls by T / 2 per frame."""
    clock, period = VirtualClock(), 20 * MS
    camera = Camera(rate=50, frames=20, policy="queue")
    run = run_camera(camera, lambda frame: clock.advance(4 * period if frame == 0 else period // 2), clock)
    ages = [d.age_ms / 20 for d in run.deliveries]
    assert ages[:8] == [4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    assert run.misses == 6


def test_on_the_real_clock_a_slow_engine_is_always_late_and_drops_no_frame():
    """Other load on the machine can only delay the frames further."""
    run = run_camera(Camera(rate=200, frames=20, policy="queue"), lambda frame: time.sleep(0.01), RealClock())
    assert [d.frame for d in run.deliveries] == list(range(20))
    assert all(d.service_ms >= 10 for d in run.deliveries)
    assert run.misses == 20
    assert run.deliveries[-1].age_ms >= 20 * 10 - 19 * 5


def test_an_error_of_the_engine_is_raised():
    def fail(frame: int) -> None:
        raise M2HError("broken engine")

    with pytest.raises(M2HError, match="broken engine"):
        run_camera(Camera(rate=30, frames=3), fail, VirtualClock())


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0},
        {"rate": -30},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"rate": 30, "policy": "newest"},
        {"rate": 30, "deadline_ms": 0},
        {"rate": 30, "deadline_ms": float("nan")},
        {"rate": 30, "policy": "queue", "capacity": 0},
        {"rate": 30, "frames": 0},
    ],
)
def test_an_invalid_camera_gives_a_one_line_error(options):
    with pytest.raises(M2HError) as error:
        Camera(**{"frames": 10, **options})
    assert "\n" not in str(error.value)
