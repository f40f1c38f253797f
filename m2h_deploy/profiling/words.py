"""Figures as the terminal and the page show them."""

from __future__ import annotations

from m2h_deploy.profiling.layers import BlockTime
from m2h_deploy.profiling.loadgen import LoadSummary
from m2h_deploy.profiling.machine import Machine
from m2h_deploy.profiling.result import BenchResult, SubjectResult, mean_readings
from m2h_deploy.profiling.statistics import Estimate, Summary


def number(value: float) -> str:
    """Three digits that count, without an exponent: 0.0123, 1.23, 123."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{places}f}"


def interval(estimate: Estimate) -> str:
    """`12.3 (12.1 to 12.9)`; an end that the samples do not bound is a question mark."""
    low = "?" if estimate.low is None else number(estimate.low)
    high = "?" if estimate.high is None else number(estimate.high)
    return f"{number(estimate.value)} ({low} to {high})"


def times(estimate: Estimate) -> str:
    """A ratio with its interval: `1.23 (1.21 to 1.26)`."""
    low, high = ("?" if end is None else f"{end:.2f}" for end in (estimate.low, estimate.high))
    return f"{estimate.value:.2f} ({low} to {high})"


def load_figure(summary: LoadSummary) -> str:
    """LoadGen's figure of a scenario: `p90 12.3 ms`, `98.5 samples/s`."""
    if "(ns)" in summary.figure:
        return f"p{float(summary.figure.split('th')[0]):g} {number(summary.value / 1e6)} ms"
    return f"{number(summary.value)} samples/s"


def subject_facts(subject: SubjectResult) -> str:
    """Engine, precision, threads and how the warm-up went."""
    threads = "threads of its own choice" if subject.threads is None else f"threads {subject.threads}"
    return f"{subject.description}, {subject.precision}, {threads}; warm-up {subject.warm_up}"


def machine_facts(machine: Machine) -> dict[str, str]:
    """The machine, a fact a line."""
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
    """`0-3, 8`."""
    parts: list[list[int]] = []
    for core in cores:
        if parts and core == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], core]
        else:
            parts.append([core])
    return ", ".join("-".join(str(core) for core in part) for part in parts)


def device_facts(times: Summary) -> str:
    """The engine alone, by the GPU's events."""
    return f"engine alone on the GPU, by events: p50 {interval(times.p50)} ms, p99 {interval(times.p99)} ms"


def memory_words(result: BenchResult) -> str:
    """Resident memory of the process."""
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
    return ", ".join(parts) or "not told by this machine"


def reading_words(result: BenchResult) -> dict[str, str]:
    """Everything that the machine told: least, mean, most."""
    return {
        name: number(mean) if least == most else f"{number(mean)} ({number(least)} to {number(most)})"
        for name, (least, mean, most) in mean_readings(result.readings).items()
    }


def block_cells(block: BlockTime) -> list[str]:
    """Block, layers, ms, share, MMAC, MB, least ms, share of the roofline."""
    return [
        block.block,
        str(block.layers),
        number(block.milliseconds),
        f"{100 * block.share:.1f} %",
        "" if block.macs is None else number(block.macs / 1e6),
        "" if block.nbytes is None else number(block.nbytes / 1e6),
        "" if block.least_ms is None else number(block.least_ms),
        "" if block.of_roofline is None else f"{100 * block.of_roofline:.0f} %",
    ]


BLOCK_COLUMNS = ("block", "layers", "ms", "share", "MMAC", "MB", "least ms", "of roofline")
