"""Time from the start of a process to its first prediction, by stage: the runtime beside a script of the plain engine.

    python benchmarks/startup.py BUNDLE... --rounds 9 --json startup.json

Three ways for each bundle, in turns, each in a new process: `plain`, a script that opens the same engine file with the
same threads and options, and prepares an image with OpenCV; `runtime`, whose self-test has passed before; `first
start`, whose self-test runs. Times are medians in seconds; the ratio is the median over the rounds of a way's total
over that of `plain`, with quartiles, and the same of processor time, which tells more on a machine with other work.
"""

from __future__ import annotations

import argparse
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

STAGES = ("python", "import", "checksums", "engine", "self-test", "first frame")
WAYS = ("plain", "runtime", "first start")
SIZE = (480, 640)

Mark = Callable[[str], None]


def plain(kind: str, folder: str, threads: int, mark: Mark) -> None:
    """Predict with the engine alone."""
    import cv2
    import numpy as np

    def tensor(height: int, width: int) -> Any:
        image = cv2.resize(np.zeros((*SIZE, 3), np.uint8), (width, height))
        return np.ascontiguousarray(((image[..., ::-1] / np.float32(255) - 0.5) / 0.25).transpose(2, 0, 1)[None])

    if kind == "onnxruntime":
        import onnxruntime as ort

        mark("import")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
        mark("engine")
        image = session.get_inputs()[0]
        session.run(None, {image.name: tensor(*image.shape[2:])})
    else:
        import openvino as ov

        mark("import")
        core = ov.Core()
        properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(
            core.read_model(f"{folder}/model.xml"), "CPU", properties | {"INFERENCE_NUM_THREADS": threads}
        )
        mark("engine")
        sides = model.input(0).partial_shape
        model.create_infer_request().infer([tensor(sides[2].get_length(), sides[3].get_length())])
    mark("first frame")


def runtime(folder: str, threads: int, mark: Mark) -> None:
    """Predict with the runtime."""
    import numpy as np

    from m2h_deploy import Runtime, load_bundle
    from m2h_deploy.backends import import_engine

    mark("import")
    bundle = load_bundle(folder, meanwhile=import_engine)
    mark("checksums")
    test = Runtime.self_test

    def marked(self: Runtime) -> None:
        mark("engine")
        test(self)
        mark("self-test")

    Runtime.self_test = marked  # type: ignore[method-assign]
    loaded = Runtime.load(bundle, threads=threads)
    mark("engine")
    loaded(np.zeros((*SIZE, 3), np.uint8))
    mark("first frame")


def child(way: str, kind: str, folder: str, threads: str, started: str) -> None:
    """Run one way in this process and print the seconds of its stages, and of the processor in all."""
    stages = dict.fromkeys(STAGES, 0.0)
    last = float(started)

    def mark(stage: str) -> None:
        nonlocal last
        now = time.clock_gettime(time.CLOCK_MONOTONIC)
        stages[stage] += now - last
        last = now

    mark("python")
    if way == "plain":
        plain(kind, folder, int(threads), mark)
    else:
        runtime(folder, int(threads), mark)
    print(json.dumps(stages | {"processor": time.process_time()}), flush=True)
    os._exit(0)


def start(way: str, kind: str, folder: Path, threads: int, cache: str) -> dict[str, float]:
    """Start a process and return what it measured."""
    command = [sys.executable, __file__, "--child", way, kind, os.fspath(folder), str(threads)]
    started = time.clock_gettime(time.CLOCK_MONOTONIC)
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    done = subprocess.run([*command, repr(started)], check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


def measure(folder: Path, threads: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Return the measurements of each way; the first round, which reads the files from disk, is dropped."""
    kind = json.loads((folder / "manifest.json").read_text())["engine"]["kind"]
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="m2h-startup-") as kept:
        start("runtime", kind, folder, threads, kept)  # its self-test passes
        for index in range(-1, rounds):
            for way in WAYS[index % len(WAYS) :] + WAYS[: index % len(WAYS)]:
                with tempfile.TemporaryDirectory(prefix="m2h-startup-") as empty:
                    found = start(way, kind, folder, threads, empty if way == "first start" else kept)
                if index >= 0:
                    runs[way].append(found | {"total": sum(found[stage] for stage in STAGES)})
    return runs


def lines(name: str, runs: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the rows of a Markdown table."""

    def ratios(way: str, field: str) -> list[float]:
        pairs = zip(runs[way], runs["plain"], strict=True)
        return statistics.quantiles([other[field] / own[field] for other, own in pairs], n=4, method="inclusive")

    rows = []
    for way, measured in runs.items():
        cells = [f"{statistics.median(run[field] for run in measured):.2f}" for field in (*STAGES, "total")]
        low, middle, high = ratios(way, "total")
        ratio = f"{middle:.2f} ({low:.2f}, {high:.2f})"
        rows.append(f"| {name} | {way} | {' | '.join(cells)} | {ratio} | {ratios(way, 'processor')[1]:.2f} |")
    return rows


def main() -> int:
    """Run the benchmark from the command line."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", help="float32 bundles for ONNX Runtime or OpenVINO on the CPU")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write all measurements to this file too")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: quartiles need as many")
    found = {folder.name: measure(folder, options.threads, options.rounds) for folder in options.bundles}
    print(f"| bundle | way | {' | '.join(STAGES)} | total | times as long | processor time |")
    print(f"|---|---|{'---:|' * (len(STAGES) + 3)}")
    for name, runs in found.items():
        print("\n".join(lines(name, runs)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
