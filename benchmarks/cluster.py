"""Throughput of cluster workers: a folder of frames by one process, and by Ray Data's pool of 1, 2, ... workers.

    python benchmarks/cluster.py --frames 400 --workers 1,2 --rounds 3 --json cluster.json

Every way writes the same files from the same images with the same bundle, m2h-tiny by default. `frames/s` is measured
between the first and the last result, when engines are loaded and Ray is running. So is `CPU s/frame`, the processor
time of the command and all its child processes, including Ray's, which hardly depends on other load on the machine.
`whole` is the time from the call to its end. Workers have one thread each; one process is timed with one thread and
with all of them. Figures are medians over the rounds (minimum and maximum in brackets); a round runs each way once, and
each round starts with a different way.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from cli.console import say
from m2h_deploy import Runtime
from m2h_deploy.cluster import Cluster, predict_folder
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.files.images import read_image
from m2h_deploy.profiling.machine import describe_machine
from m2h_deploy.sinks.files import write_prediction
from m2h_deploy.sources.source import folder_images


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one way."""

    rate: float
    """Frames per second between the first and the last result."""
    processor: float
    """Seconds of processor time per frame, of this process and its children, between the same results."""
    whole: float
    """Seconds from the call to its end."""


#: The results of one task arrive together: those within so many seconds of the first were ready with it.
_BURST = 0.1


class Clock:
    """Record of when how many frames were done, and with how much processor time."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seen: list[tuple[float, int, float]] = []

    def __call__(self, done: int, total: int) -> None:
        """Record that `done` of `total` frames are finished; a progress callback."""
        now = time.perf_counter()
        if not done:
            return
        if not self._seen or done == total:
            self._seen.append((now, done, processor_seconds()))
        elif len(self._seen) == 1 and now - self._seen[0][0] < _BURST:
            self._seen[0] = (self._seen[0][0], done, self._seen[0][2])

    def run(self) -> Run:
        """Return the figures of the run between the first and the last record."""
        (first, some, busy), (last, total, busier) = self._seen[0], self._seen[-1]
        frames = total - some
        return Run(frames / (last - first), (busier - busy) / frames, time.perf_counter() - self._start)


def processor_seconds() -> float:
    """Return user and system time in seconds of this process and its living descendants."""
    parents, ticks = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry.name)], ticks[int(entry.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    level, total = {os.getpid()}, 0
    while level:
        total += sum(ticks.get(pid, 0) for pid in level)
        level = {pid for pid, parent in parents.items() if parent in level}
    return total / os.sysconf("SC_CLK_TCK")


def one_process(bundle: Path, images: Path, threads: int) -> Run:
    """Predict the folder `images` in this process with `threads` threads."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="m2h-cluster-") as out, Runtime.load(bundle, threads=threads) as runtime:
        cv2.setNumThreads(threads)
        frames = folder_images(images)
        for done, (name, file) in enumerate(frames, start=1):
            image = read_image(file)
            write_prediction(Path(out), name, image, runtime(image), runtime.manifest.classes)
            clock(done, len(frames))
    return clock.run()


def pool(bundle: Path, images: Path, workers: int) -> Run:
    """Predict the folder `images` with Ray Data's pool of `workers` workers."""
    clock = Clock()
    with tempfile.TemporaryDirectory(prefix="m2h-cluster-") as out:
        job = predict_folder(bundle, images, out, cluster=Cluster(workers=workers), progress=clock)
        assert not job.failed and not job.reused
    return clock.run()


def ways(bundle: Path, images: Path, workers: list[int]) -> dict[str, Callable[[], Run]]:
    """Return every way to predict the folder by its name in the table: one process, and one pool per worker count."""
    threads = len(os.sched_getaffinity(0))
    found: dict[str, Callable[[], Run]] = {"one process, 1 thread": lambda: one_process(bundle, images, 1)}
    if threads > 1:
        found[f"one process, {threads} threads"] = lambda: one_process(bundle, images, threads)
    for count in workers:
        found[f"Ray, {count} worker{'s' * (count > 1)}"] = lambda count=count: pool(bundle, images, count)  # type: ignore[misc]
    return found


def in_turns(ways: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[Run]]:
    """Run every way once per round, and start each round with a different way."""
    names = list(ways)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for index in range(rounds):
        at = index % len(names)
        for name in names[at:] + names[:at]:
            runs[name].append(ways[name]())
            say(f"{name}: {runs[name][-1]}")
    return runs


def markdown(runs: dict[str, list[Run]]) -> str:
    """Format the runs as a Markdown table, with rates relative to one process of one thread."""
    base = statistics.median(run.rate for run in runs["one process, 1 thread"])
    lines = ["| way | frames/s | times one thread | CPU s/frame | whole, s |", "|---|---:|---:|---:|---:|"]
    for name, found in runs.items():
        rates = [run.rate for run in found]
        rate, busy, whole = (
            statistics.median(v) for v in (rates, [r.processor for r in found], [r.whole for r in found])
        )
        span = f"({min(rates):.2f}, {max(rates):.2f})"
        lines.append(f"| {name} | {rate:.2f} {span} | {rate / base:.2f} | {busy:.3f} | {whole:.1f} |")
    return "\n".join(lines)


def make_bundle(folder: Path) -> Path:
    """Export and build the m2h-tiny bundle in `folder`."""
    from engines import build_bundle
    from export import export_onnx
    from m2h_deploy.model import load_checkpoint

    graph = export_onnx(load_checkpoint("m2h-tiny"), folder / "model.onnx").path
    return build_bundle(graph, folder / "bundle").path


def make_images(folder: Path, count: int) -> Path:
    """Write `count` images of a few different rooms; their content does not affect the time."""
    folder.mkdir()
    rooms = [cv2.imencode(".png", render_room(0, index, 480, 640).image)[1].tobytes() for index in range(min(count, 8))]
    for index in range(count):
        (folder / f"room{index:05d}.png").write_bytes(rooms[index % len(rooms)])
    return folder


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="m2h-tiny at 224 x 224 by default")
    parser.add_argument("--frames", type=int, default=400, help="images of 640 x 480")
    parser.add_argument("--workers", default="1,2", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every run to this file too")
    options = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="m2h-cluster-") as name:
        folder = Path(name)
        bundle = options.bundle or make_bundle(folder)
        images = make_images(folder / "images", options.frames)
        runs = in_turns(ways(bundle, images, [int(count) for count in options.workers.split(",")]), options.rounds)
    print(markdown(runs))
    print(f"\n{options.frames} frames, {options.rounds} rounds, {machine.cpu}, {len(machine.affinity)} cores, "
          f"load before {machine.load:.1f}")  # fmt: skip
    if options.json:
        plain: dict[str, Any] = {name: [dataclasses.asdict(run) for run in found] for name, found in runs.items()}
        content = {"frames": options.frames, "machine": dataclasses.asdict(machine), "runs": plain}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
