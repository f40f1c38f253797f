"""Cost of the evaluation alone: synthetic 480x640 frames streamed through all four metrics, without a network.

    python benchmarks/metrics.py --frames 654 --json metrics.json

A frame is a synthetic room with exact labels; its prediction is the labels with added errors. Reported are the time
per frame of each metric (wall clock and CPU) and the peak resident memory, which must not grow with the
number of frames. The metrics' values are printed only to show that they come from a full run; they do not describe any
network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from m2h_deploy.data.frame import Frame
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.metrics import DepthMetric, EdgesMetric, Metric, NormalsMetric, SemanticsMetric

NYUV2_TEST_FRAMES = 654
HEIGHT, WIDTH = 480, 640

Pair = tuple[npt.NDArray, npt.NDArray]


@dataclass
class Cost:
    """Seconds spent in `update`, per frame."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, metric: Metric, pair: Pair) -> None:
        """Update `metric` with a pair of prediction and target, and record the time."""
        wall, cpu = time.perf_counter(), time.process_time()
        metric.update(*pair)
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)

    def summary(self) -> dict[str, float]:
        """Return the mean and largest times in milliseconds, and the estimate for NYUv2's test split in seconds."""
        return {
            "wall_ms_mean": 1e3 * float(np.mean(self.wall)),
            "wall_ms_max": 1e3 * float(np.max(self.wall)),
            "cpu_ms_mean": 1e3 * float(np.mean(self.cpu)),
            "wall_s_for_654_frames": NYUV2_TEST_FRAMES * float(np.mean(self.wall)),
        }


def smooth_noise(rng: np.random.Generator, sigma: float) -> npt.NDArray[np.float32]:
    """Return noise that varies over about `sigma` pixels, with unit variance, float32 (H, W)."""
    coarse = rng.standard_normal((int(HEIGHT / sigma) + 2, int(WIDTH / sigma) + 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.float32)


def disturbed(frame: Frame, rng: np.random.Generator) -> dict[str, Pair]:
    """Make a prediction with errors typical of a network, and its target, for each task."""
    semantics, depth, normals, edges = frame.semantics, frame.depth, frame.normals, frame.edges
    assert semantics is not None and depth is not None and normals is not None and edges is not None
    wrong = smooth_noise(rng, 40) > 1
    labels = np.where(wrong, np.roll(semantics, 60, axis=1), semantics)
    # A 41-class network: 0 is unknown, the data's class k is k + 1; unlabeled pixels may get any class.
    labels_of_41 = np.where(labels == 255, 0, labels.astype(np.int64) + 1).astype(np.uint8)
    blurred = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), 2.0)
    logits = 10 * blurred / max(float(blurred.max()), 1e-6) - 4 + 1.2 * smooth_noise(rng, 3)
    tilt = np.stack([smooth_noise(rng, 25) for _ in range(3)], axis=-1)
    return {
        "semantics": (labels_of_41, semantics),
        "depth": ((depth * np.exp(0.15 * smooth_noise(rng, 50)) + 0.01).astype(np.float32), depth),
        "normals": ((normals + 0.3 * tilt).astype(np.float32), normals),
        "edges": ((1 / (1 + np.exp(-logits))).astype(np.float32), edges),
    }


def frames(count: int, rooms: int, seed: int) -> Iterator[dict[str, Pair]]:
    """Yield `count` disturbed frames of at most `rooms` different rooms; rendering takes longer than most metrics."""
    drawn = [render_room(seed, index, HEIGHT, WIDTH) for index in range(min(rooms, count))]
    for index in range(count):
        yield disturbed(drawn[index % len(drawn)], np.random.default_rng([seed, index]))


def peak_megabytes() -> float:
    """Return the peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3 / 1.024)


def measure(count: int, rooms: int, seed: int) -> dict[str, object]:
    """Run the benchmark and return the report that is written to the JSON file."""
    metrics: dict[str, Metric] = {
        "semantics": SemanticsMetric(num_outputs=41),
        "depth": DepthMetric(),
        "normals": NormalsMetric(),
        "edges": EdgesMetric(),
    }
    costs = {name: Cost() for name in metrics}
    half_way = 0.0
    stream = frames(count, rooms, seed)
    progress = track(stream, "metrics", total=count, console=Console(stderr=True), transient=True)
    for done, pairs in enumerate(progress, start=1):
        for name, metric in metrics.items():
            costs[name].add(metric, pairs[name])
        if done == (count + 1) // 2:
            half_way = peak_megabytes()
    return {
        "frames": count,
        "height": HEIGHT,
        "width": WIDTH,
        "rooms": min(rooms, count),
        "seed": seed,
        "cpu_count": os.cpu_count(),
        "load_average_at_end": os.getloadavg()[0],
        "peak_rss_mb": peak_megabytes(),
        "peak_rss_mb_half_way": half_way,
        "cost": {name: cost.summary() for name, cost in costs.items()},
        "figures": {name: metric.compute() for name, metric in metrics.items()},
    }


def show(report: dict) -> None:
    """Print a report of `measure`."""
    print(f"{report['frames']} frames of {HEIGHT}x{WIDTH} from {report['rooms']} rooms, seed {report['seed']}")
    print(f"{'':10} {'ms/frame':>9} {'slowest':>9} {'CPU ms':>9} {'654 frames':>11}")
    for name, cost in report["cost"].items():
        print(
            f"{name:10} {cost['wall_ms_mean']:9.1f} {cost['wall_ms_max']:9.1f} {cost['cpu_ms_mean']:9.1f} "
            f"{cost['wall_s_for_654_frames']:9.0f} s"
        )
    print(f"peak memory {report['peak_rss_mb']:.0f} MB ({report['peak_rss_mb_half_way']:.0f} MB half-way)")
    for name, figures in report["figures"].items():
        print(f"{name:10} " + "  ".join(f"{key} {value:.4f}" for key, value in figures.items()))


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=20, help="frames to stream (NYUv2's test split has 654)")
    parser.add_argument("--rooms", type=int, default=16, help="different rooms among them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    if arguments.frames < 1 or arguments.rooms < 1 or arguments.seed < 0:
        parser.error("--frames and --rooms must be at least 1, --seed at least 0")
    if arguments.json and not arguments.json.parent.is_dir():
        parser.error(f"--json: the folder {arguments.json.parent} does not exist; make it first")
    cv2.setNumThreads(1)
    try:
        report = measure(arguments.frames, arguments.rooms, arguments.seed)
    except KeyboardInterrupt:
        print("stopped; nothing written", file=sys.stderr)
        return 130
    show(report)
    if arguments.json:
        temporary = arguments.json.with_name(arguments.json.name + ".part")
        temporary.write_text(json.dumps(report, indent=2) + "\n")
        temporary.replace(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
