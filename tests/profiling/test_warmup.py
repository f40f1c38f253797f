"""Test that the warm-up ends when times are stable, and reports the change if they are not."""

from __future__ import annotations

from m2h_deploy.profiling.warmup import warm_up
from tests.profiling.virtual_clock import VirtualClock


def run_with(times_ms, limit_s=20.0):
    clock, times = VirtualClock(), iter(times_ms)
    return warm_up(lambda: clock.advance(round(next(times) * 1e6)), clock=clock, limit_s=limit_s)


def test_steady_times_need_two_windows():
    result = run_with([10.0] * 100)
    assert (result.runs, result.change, result.stable) == (16, 0.0, True)


def test_the_warm_up_lasts_until_compilation_is_over():
    result = run_with([300.0] * 5 + [50.0 - 2 * i for i in range(20)] + [10.0] * 100)
    assert result.stable
    assert result.runs > 25
    assert result.change <= 0.02


def test_one_slow_run_does_not_prolong_the_warm_up():
    assert run_with([10.0] * 12 + [500.0] + [10.0] * 100).runs == 16


def test_times_that_never_settle_end_at_the_limit_and_are_reported():
    result = run_with((10.0 * 1.02**i for i in range(10_000)), limit_s=3.0)
    assert not result.stable
    assert result.seconds >= 3.0
    assert "NOT stable" in str(result)
    assert "17.2 %" in str(result)  # 1.02 ** 8


def test_too_few_runs_in_the_time_are_reported():
    result = run_with([4000.0] * 10, limit_s=10.0)
    assert (result.runs, result.stable) == (3, False)
    assert "too few" in str(result)
