"""Effect of ONNX Runtime's session options: each compared with the options that the runtime uses, in turns.

    python benchmarks/session_options.py --variants m2h-tiny,m2h-small --threads 2 --rounds 15 --json options.json

The ratio is the median over the rounds of the time with the other option over the time with the runtime's, so above 1
the runtime's choice is the faster one; quartiles are in brackets. Memory is what a session adds to a separate process,
engine file included, after three frames. Weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from cli.console import say
from engines.onnxruntime import build_onnxruntime
from export import export_onnx
from m2h_deploy.model import build_model

Change = Callable[[ort.SessionOptions], None]


def _set(name: str, value: object) -> Change:
    return lambda options: setattr(options, name, value)


def _entry(name: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(name, value)


#: Changes to the options of `m2h_deploy.backends.onnxruntime`, which leaves all of these at their defaults.
CHANGES: dict[str, Change] = {
    "the runtime's": lambda options: None,
    "arena off": _set("enable_cpu_mem_arena", False),
    "memory pattern off": _set("enable_mem_pattern", False),
    "level extended (no NCHWc)": _set("graph_optimization_level", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    "level off": _set("graph_optimization_level", ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    "threads do not spin": _entry("session.intra_op.allow_spinning", "0"),
    "denormals are zero": _entry("session.set_denormal_as_zero", "1"),
    "parallel execution": _set("execution_mode", ort.ExecutionMode.ORT_PARALLEL),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One option's figures: milliseconds, ratio to the runtime's options with quartiles, megabytes."""

    variant: str
    options: str
    median_ms: float
    ratio: float
    low: float
    high: float
    resident_mb: float


def open_session(file: Path, change: str, threads: int) -> ort.InferenceSession:
    """Open a session with the runtime's options and one change."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    CHANGES[change](options)
    return ort.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])


def measure(variant: str, threads: int, rounds: int) -> list[Row]:
    """Measure time and memory of every change for one variant."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="m2h-options-") as name:
        folder = Path(name)
        source = export_onnx(build_model(variant).eval(), folder / "source.onnx").path
        (folder / "engine").mkdir()
        build_onnxruntime(source, folder / "engine")
        file = folder / "engine" / "model.onnx"
        sessions = {change: open_session(file, change, threads) for change in CHANGES}
        times = in_turns(sessions, rounds)
        del sessions
        memory = {change: resident(file, change, threads) for change in CHANGES}
    return [_row(variant, change, times, memory) for change in CHANGES]


def in_turns(sessions: dict[str, ort.InferenceSession], rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of every session; each round runs all once and starts with a different one."""
    frame = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    feeds = {change: {session.get_inputs()[0].name: frame} for change, session in sessions.items()}
    order = list(sessions)
    times: dict[str, list[float]] = {change: [] for change in order}
    for index in range(-2, rounds):
        for change in order[index % len(order) :] + order[: index % len(order)]:
            start = time.perf_counter()
            sessions[change].run(None, feeds[change])
            if index >= 0:
                times[change].append((time.perf_counter() - start) * 1e3)
    return times


def resident(file: Path, change: str, threads: int) -> float:
    """Return the megabytes that a session adds to a new process."""
    command = [sys.executable, __file__, "--resident", os.fspath(file), change, str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_resident(file: str, change: str, threads: str) -> None:
    """Print the megabytes that a session adds to this process."""
    before = resident_bytes()
    session = open_session(Path(file), change, int(threads))
    frame = np.zeros((1, 3, 224, 224), np.float32)
    for _ in range(3):
        session.run(None, {session.get_inputs()[0].name: frame})
    print((resident_bytes() - before) / 1e6)


def resident_bytes() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _row(variant: str, change: str, times: dict[str, list[float]], memory: dict[str, float]) -> Row:
    ratios = [other / own for other, own in zip(times[change], times["the runtime's"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Row(variant, change, statistics.median(times[change]), middle, low, high, memory[change])


def markdown(rows: list[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = ["| network | options | ms | times as long | resident MB |", "|---|---|---:|---:|---:|"]
    lines += [
        f"| {row.variant} | {row.options} | {row.median_ms:.1f} | {row.ratio:.2f} ({row.low:.2f}, {row.high:.2f}) "
        f"| {row.resident_mb:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark from the command line."""
    if sys.argv[1:2] == ["--resident"]:
        print_resident(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="m2h-tiny,m2h-small", help="separated by commas")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    rows: list[Row] = []
    for variant in options.variants.split(","):
        say(variant)
        rows += measure(variant, options.threads, options.rounds)
    print(markdown(rows))
    print(f"\nONNX Runtime {ort.__version__}, {options.threads} threads, {options.rounds} rounds.")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
