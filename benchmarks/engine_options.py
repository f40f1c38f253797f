"""Time and memory of a network under other options of ONNX Runtime or OpenVINO than the runtime's.

    python benchmarks/engine_options.py BUNDLE... --threads 2 --rounds 48 --json options.json

Each candidate has a process of its own; the processes run one frame each in turns. The ratio is the median over the
rounds of a candidate's time over that of the runtime's options, so above 1 the runtime's choice is the faster one;
quartiles are in brackets. The ratio of processor time tells more on a machine with other work. Memory is what the
engine adds to its process, engine file included: the peak until the first frame, the peak over all frames, and what is
resident after the last.
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
from typing import Any

import numpy as np

from cli.console import say
from m2h_deploy import Bundle, load_bundle
from m2h_deploy.bundle.self_test import pattern

#: The first candidate of each engine: what `m2h_deploy.backends` sets.
OURS = "the runtime's"

_RUNTIMES_OWN = {"enable_mem_pattern": False, "enable_mem_reuse": False}

#: Session options of ONNX Runtime. A name with a dot is a configuration entry, `arena` a registered arena's settings;
#: `shrink` releases unused memory of the arena after each frame.
ONNXRUNTIME: dict[str, dict[str, Any]] = {
    OURS: _RUNTIMES_OWN,
    "ONNX Runtime's defaults": {},
    "memory pattern off": {"enable_mem_pattern": False},
    "memory reuse off": {"enable_mem_reuse": False},
    "and arena as requested": {**_RUNTIMES_OWN, "arena": {"arena_extend_strategy": 1}},
    "and arena splits at 1 MB": {**_RUNTIMES_OWN, "arena": {"max_dead_bytes_per_chunk": 1 << 20}},
    "and arena shrinks": {**_RUNTIMES_OWN, "shrink": True},
    "and arena off": {**_RUNTIMES_OWN, "enable_cpu_mem_arena": False},
    "and weights outside the arena": {**_RUNTIMES_OWN, "session.use_device_allocator_for_initializers": "1"},
    "and no prepacking": {**_RUNTIMES_OWN, "session.disable_prepacking": "1"},
    "and threads do not spin": {**_RUNTIMES_OWN, "session.intra_op.allow_spinning": "0"},
}

#: Properties of OpenVINO's CPU device. `CACHE_DIR` is replaced by a temporary folder that holds the compiled model.
OPENVINO: dict[str, dict[str, Any]] = {
    OURS: {},
    "weights not memory-mapped": {"ENABLE_MMAP": False},
    "compiled model from a cache": {"CACHE_DIR": ""},
    "no cache of kernels": {"CPU_RUNTIME_CACHE_CAPACITY": 0},
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A candidate's figures: milliseconds, ratios with quartiles, megabytes."""

    bundle: str
    options: str
    load_s: float
    median_ms: float
    ratio: float
    low: float
    high: float
    processor_ratio: float
    load_peak_mb: float
    peak_mb: float
    settled_mb: float


def open_onnxruntime(file: Path, options: dict[str, Any], threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    """Open a session; return a function that runs a frame."""
    import onnxruntime as ort

    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4
    session_options.intra_op_num_threads, session_options.inter_op_num_threads = threads, 1
    for name, value in options.items():
        if "." in name:
            session_options.add_session_config_entry(name, value)
        elif name == "arena":
            cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(cpu, ort.OrtArenaCfg(value))
            session_options.add_session_config_entry("session.use_env_allocators", "1")
        elif name != "shrink":
            setattr(session_options, name, value)
    run_options = ort.RunOptions()
    if options.get("shrink"):
        run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    session = ort.InferenceSession(os.fspath(file), session_options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds, run_options)


def open_openvino(file: Path, options: dict[str, Any], threads: int) -> Callable[[dict[str, np.ndarray]], object]:
    """Compile a model in float32; return a function that runs a frame."""
    import openvino as ov

    core = ov.Core()
    mapped = {"ENABLE_MMAP": options["ENABLE_MMAP"]} if "ENABLE_MMAP" in options else {}
    core.set_property(mapped)
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    others = {name: value for name, value in options.items() if name not in mapped}
    compiled = core.compile_model(core.read_model(file), "CPU", properties | others)
    request = compiled.create_infer_request()
    return request.infer


ENGINES = {"onnxruntime": (ONNXRUNTIME, open_onnxruntime), "openvino": (OPENVINO, open_openvino)}


def memory() -> tuple[float, float]:
    """Return this process's peak and present resident memory in megabytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmHWM", "VmRSS"))  # type: ignore[return-value]


def work(folder: str, options: str, threads: str) -> None:
    """Run a frame for each line of the standard input; write what was measured as JSON lines."""
    bundle = load_bundle(folder)
    __import__(bundle.manifest.engine.kind)
    feeds = {bundle.manifest.input.name: pattern(bundle.manifest.input)}
    before, start = memory()[1], time.perf_counter()
    run = ENGINES[bundle.manifest.engine.kind][1](bundle.engine_file, json.loads(options), int(threads))
    loaded = {"load_s": time.perf_counter() - start, "load_peak_mb": memory()[0] - before}
    for _ in range(2):
        run(feeds)
    print(json.dumps(loaded), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        run(feeds)
        frame = {"ms": (time.perf_counter() - wall) * 1e3, "processor_ms": (time.process_time() - processor) * 1e3}
        peak, present = memory()
        print(json.dumps(frame | {"peak_mb": peak - before, "settled_mb": present - before}), flush=True)


class Candidate:
    """The process of one candidate."""

    def __init__(self, bundle: Bundle, options: dict[str, Any], threads: int) -> None:
        command = [sys.executable, __file__, "--work", os.fspath(bundle.path), json.dumps(options), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.loaded = self._answer()
        self.frames: list[dict[str, float]] = []

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a candidate ended with {self._process.wait()}")
        return json.loads(line)

    def run(self) -> None:
        """Run a frame."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.frames.append(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(path: Path, threads: int, rounds: int, only: list[str]) -> list[Row]:
    """Measure the candidates of a bundle's engine."""
    bundle = load_bundle(path)
    points = ENGINES[bundle.manifest.engine.kind][0]
    chosen = {name: options for name, options in points.items() if not only or name in (OURS, *only)}
    candidates: dict[str, Candidate] = {}
    with tempfile.TemporaryDirectory(prefix="m2h-options-") as cache:
        try:
            for name, options in chosen.items():
                say(f"{path}: {name}")
                options = {key: cache if key == "CACHE_DIR" else value for key, value in options.items()}
                if "CACHE_DIR" in options:
                    Candidate(bundle, options, threads).close()  # fills the cache
                candidates[name] = Candidate(bundle, options, threads)
            order = list(candidates)
            for index in range(rounds):
                for name in order[index % len(order) :] + order[: index % len(order)]:
                    candidates[name].run()
        finally:
            for candidate in candidates.values():
                candidate.close()
    return [_row(path.name, name, candidate, candidates[OURS]) for name, candidate in candidates.items()]


def _row(bundle: str, name: str, candidate: Candidate, ours: Candidate) -> Row:
    def ratios(field: str) -> list[float]:
        pairs = zip(candidate.frames, ours.frames, strict=True)
        return statistics.quantiles([other[field] / own[field] for other, own in pairs], n=4, method="inclusive")

    low, middle, high = ratios("ms")
    return Row(
        bundle=bundle,
        options=name,
        load_s=candidate.loaded["load_s"],
        median_ms=statistics.median(frame["ms"] for frame in candidate.frames),
        ratio=middle,
        low=low,
        high=high,
        processor_ratio=ratios("processor_ms")[1],
        load_peak_mb=candidate.loaded["load_peak_mb"],
        peak_mb=candidate.frames[-1]["peak_mb"],
        settled_mb=candidate.frames[-1]["settled_mb"],
    )


def markdown(rows: list[Row]) -> str:
    """Format the rows as a Markdown table."""
    lines = [
        "| bundle | options | load, s | ms | times as long | processor time | peak MB (load) | settled MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.bundle} | {row.options} | {row.load_s:.2f} | {row.median_ms:.1f} "
        f"| {row.ratio:.2f} ({row.low:.2f}, {row.high:.2f}) | {row.processor_ratio:.2f} "
        f"| {row.peak_mb:.0f} ({row.load_peak_mb:.0f}) | {row.settled_mb:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark from the command line."""
    if sys.argv[1:2] == ["--work"]:
        work(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="float32 bundles for ONNX Runtime or OpenVINO")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=48)
    parser.add_argument("--only", action="append", default=[], help="a row to measure beside the runtime's; may repeat")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need as many")
    rows: list[Row] = []
    for path in options.bundles:
        rows += measure(path, options.threads, options.rounds, options.only)
    print(markdown(rows))
    print(f"\n{options.threads} threads, {options.rounds} rounds.")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
