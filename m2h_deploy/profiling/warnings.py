"""Warnings about unreliable measurements."""

from __future__ import annotations

import dataclasses

from m2h_deploy.profiling.report.words import above_roofline
from m2h_deploy.profiling.result import BenchResult, mean_readings
from m2h_deploy.profiling.statistics import STEADY

#: Percentage of the processor time that other processes may use without a warning.
_OTHERS = 5.0

#: A larger relative drop of a clock indicates throttling, or a missing warm-up.
_CLOCK = 0.1


def find_warnings(result: BenchResult) -> BenchResult:
    """Return the result with warnings appended to those that it has."""
    return dataclasses.replace(result, warnings=(*result.warnings, *_of_subjects(result), *_of_machine(result)))


def _of_subjects(result: BenchResult) -> list[str]:
    found = []
    for subject in result.subjects:
        total = subject.summary["total"]
        doubts = []
        if not total.steady:
            share = f"{100 * total.variation:.1f} %"
            doubts.append(f"coefficient of variation {share}, above {100 * STEADY:g} %, something disturbed the runs")
        if not subject.warm_up.stable:
            doubts.append(f"warm-up {subject.warm_up}")
        if total.p99.high is None:
            doubts.append(f"{total.count} runs are too few to bound the 99th percentile, give a longer --duration")
        if doubts:
            found.append(f"{subject.name}: {'; '.join(doubts)}")
    for load in result.loads:
        if not load.summary.valid:
            failed = [f"{name}: {value}" for name, value in load.summary.checks.items() if value != "Yes"]
            reasons = ", ".join(failed) or "no reason given"
            found.append(f"{load.subject}: LoadGen calls {load.settings.scenario} {load.summary.line} ({reasons})")
    if result.roofline is not None and not result.roofline.threads_held:
        found.append("the roofline's product ran on numpy's own number of threads: pip install threadpoolctl")
    if (above := above_roofline(result)) is not None:
        found.append(above)
    return found


def _of_machine(result: BenchResult) -> list[str]:
    found = []
    readings = mean_readings(result.readings)
    others = readings.get("other load (%)")
    if others is not None and others[1] > _OTHERS:
        found.append(f"other processes used {others[1]:.0f} % of the processor time while it was measured")
    for name, (least, _, most) in readings.items():
        if "clock" in name and "memory" not in name and least < (1 - _CLOCK) * most:
            found.append(f"{name} fell from {most:.0f} to {least:.0f} while it was measured")
    governor = result.machine.governor
    if governor not in (None, "performance"):
        found.append(f"the CPU's clock is chosen by the governor '{governor}': 'performance' is steadier")
    return found
