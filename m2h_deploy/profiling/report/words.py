"""Format figures for the terminal and the page."""

from __future__ import annotations

from m2h_deploy.profiling.camera_load import CameraRun
from m2h_deploy.profiling.layers import BlockTime
from m2h_deploy.profiling.loadgen import LoadRun, LoadSummary
from m2h_deploy.profiling.machine import Machine
from m2h_deploy.profiling.result import BenchResult, SubjectResult, mean_readings
from m2h_deploy.profiling.statistics import Estimate, Summary

# Columns of the tables, the same in the terminal and on the page; the first is for the subject.
LATENCY_COLUMNS = ("ms", "runs", "p50", "p90", "p99", "max", "variation", "per second")
RATIO_COLUMNS = ("times as fast", "whole frame", "inference")
CAMERA_COLUMNS = (
    "age, ms", "policy", "p50", "p90", "p99", "max", "late", "dropped", "in time", "answers/s", "utilization",
)  # fmt: skip
LOAD_COLUMNS = ("LoadGen", "scenario", "verdict", "figure", "queries", "frames", "p50 ms", "p99 ms")
BLOCK_COLUMNS = ("block", "layers", "ms", "share", "MMAC", "MB", "least ms", "of roofline")
MACHINE_COLUMNS = ("machine during the run", "mean (min to max)")


def number(value: float) -> str:
    """Format with three significant digits, without an exponent: 0.0123, 1.23, 123."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{places}f}"


def interval(estimate: Estimate) -> str:
    """Format `12.3 (12.1 to 12.9)`; an unbounded end is a question mark."""
    low = "?" if estimate.low is None else number(estimate.low)
    high = "?" if estimate.high is None else number(estimate.high)
    return f"{number(estimate.value)} ({low} to {high})"


def times(estimate: Estimate) -> str:
    """Format a ratio with its interval: `1.23 (1.21 to 1.26)`."""
    low, high = ("?" if end is None else f"{end:.2f}" for end in (estimate.low, estimate.high))
    return f"{estimate.value:.2f} ({low} to {high})"


def latency_cells(total: Summary) -> list[str]:
    """Return the cells of LATENCY_COLUMNS after the subject."""
    return [
        str(total.count),
        *(interval(estimate) for estimate in (total.p50, total.p90, total.p99)),
        number(total.most),
        f"{100 * total.variation:.1f} %",
        number(1000 / total.mean),
    ]


def camera_cells(run: CameraRun, *, intervals: bool = True) -> list[str]:
    """Return the cells of CAMERA_COLUMNS after the subject; a terminal is too narrow for `intervals`."""
    age = run.age
    percentiles = (age.p50, age.p90, age.p99)
    return [
        run.camera.policy,
        *(interval(estimate) if intervals else number(estimate.value) for estimate in percentiles),
        number(age.most),
        f"{run.misses} of {len(run.deliveries)}",
        f"{len(run.dropped)} of {run.camera.frames}",
        f"{100 * run.in_time:.1f} %",
        number(run.delivered_rate),
        f"{100 * run.utilization:.0f} %",
    ]


def load_cells(load: LoadRun) -> list[str]:
    """Return the cells of LOAD_COLUMNS after the subject."""
    total = load.samples.summary()["total"]
    return [
        load.settings.scenario,
        load.summary.line,
        load_figure(load.summary),
        str(load.queries),
        str(total.count),
        number(total.p50.value),
        number(total.p99.value),
    ]


def load_figure(summary: LoadSummary) -> str:
    """Format LoadGen's figure of a scenario: `p90 12.3 ms`, `98.5 samples/s`."""
    if "(ns)" in summary.figure:
        return f"p{float(summary.figure.split('th')[0]):g} {number(summary.value / 1e6)} ms"
    return f"{number(summary.value)} samples/s"


def subject_facts(subject: SubjectResult) -> str:
    """Describe engine, precision, threads and the warm-up."""
    threads = "threads of its own choice" if subject.threads is None else f"threads {subject.threads}"
    return f"{subject.description}, {subject.precision}, {threads}; warm-up {subject.warm_up}"


def machine_facts(machine: Machine) -> dict[str, str]:
    """Return facts about the machine by name, for one line each."""
    cores = f"{len(machine.affinity)} of {machine.cores} cores (affinity {_ranges(machine.affinity)})"
    memory = "" if machine.memory_gb is None else f", {machine.memory_gb:.0f} GB"
    facts = {"CPU": f"{machine.cpu}, {cores}{memory}"}
    if machine.gpu:
        facts["GPU"] = machine.gpu
    if machine.governor:
        facts["Governor"] = machine.governor
    facts["Load before"] = f"{machine.load:.2f}"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    facts["Software"] = f"Python {machine.python}, {packages}"
    facts["System"] = machine.system
    if machine.variables:
        facts["Environment"] = ", ".join(f"{name}={value}" for name, value in machine.variables.items())
    return facts


def _ranges(cores: tuple[int, ...]) -> str:
    """Format core numbers as ranges: `0-3, 8`."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], core]
        else:
            parts.append([core])
    return ", ".join("-".join(str(core) for core in part) for part in parts)


def device_facts(times: Summary) -> str:
    """Format the times of the engine alone, by the GPU's events."""
    return f"engine alone on the GPU, by events: p50 {interval(times.p50)} ms, p99 {interval(times.p99)} ms"


def memory_words(result: BenchResult) -> str:
    """Format the resident memory of the process."""
    memory = result.memory
    parts = [
        f"{value:.0f} MB {when}"
        for value, when in (
            (memory.peak, "at most"),
            (memory.loaded, "when loaded"),
            (memory.before, "before any engine"),
        )
        if value is not None
    ]
    return ", ".join(parts) or "not available on this machine"


def reading_words(result: BenchResult) -> dict[str, str]:
    """Format all readings: mean, minimum and maximum."""
    return {
        name: number(mean) if least == most else f"{number(mean)} ({number(least)} to {number(most)})"
        for name, (least, mean, most) in mean_readings(result.readings).items()
    }


def machine_rows(result: BenchResult) -> dict[str, str]:
    """Return readings, memory and the measured roofline: cells of MACHINE_COLUMNS."""
    rows = {**reading_words(result), "resident memory": memory_words(result)}
    roof = result.roofline
    if roof is not None:
        threads = f"{roof.threads} thread{'s' if roof.threads > 1 else ''}"
        rows["roofline"] = f"{roof.gflops:.0f} GFLOP/s float32, {roof.gigabytes:.1f} GB/s copied, {threads}"
    return rows


def block_cells(block: BlockTime) -> list[str]:
    """Return the cells of BLOCK_COLUMNS; a share above 100 % of the roofline is shown without a number."""
    return [
        block.block,
        str(block.layers),
        number(block.milliseconds),
        f"{100 * block.share:.1f} %",
        "" if block.macs is None else number(block.macs / 1e6),
        "" if block.nbytes is None else number(block.nbytes / 1e6),
        "" if block.least_ms is None else number(block.least_ms),
        "" if block.of_roofline is None else _roofline_share(block.of_roofline),
    ]


def _roofline_share(share: float) -> str:
    return "> 100 %" if share > 1 else f"{100 * share:.0f} %"


def above_roofline(result: BenchResult) -> str | None:
    """Explain blocks that are faster than the roofline allows; None without such blocks."""
    blocks = [block for profile in result.layers for block in profile.blocks]
    above = list(dict.fromkeys(block.block for block in blocks if (block.of_roofline or 0.0) > 1))
    if not above:
        return None
    return (
        f"> 100 % of the roofline in {', '.join(above)}: other work ran while the roof was measured, or the engine has "
        "features that the roofline does not measure, such as matrix units (bf16, INT8) or maps that stay in the cache"
    )
