"""Cost of the temporal filter beside the engine that it filters, on 480x640 frames of a walk through a synthetic room.

    python benchmarks/temporal.py BUNDLE --frames 12

Engine and filter take turns, frame by frame. The filter gets the true depth, labels and normals with noise, so that its
work does not depend on the weights of the network. Reported are the median milliseconds of each, and the share of the
filter in the time of the engine for a frame (preprocess, inference, postprocess).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

from m2h_deploy import Runtime
from m2h_deploy.data.rooms.walk import RoomWalk
from m2h_deploy.errors import M2HError
from m2h_deploy.profiling.hardware import read_cpu
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal import FilterSettings, TemporalFilter

HEIGHT, WIDTH, RATE = 480, 640, 10.0

#: Standard deviation of the noise of depth, as a share of it.
NOISE = 0.05


def measure(bundle: Path, frames: int, seed: int, threads: int | None) -> dict:
    """Predict and filter `frames` frames after a warm-up, and return the report."""
    history = FilterSettings().history_size
    walk = RoomWalk(frames + history, seed, RATE, HEIGHT, WIDTH)
    temporal = TemporalFilter(walk.intrinsics)
    engine, filtering, support = [], [], []
    rng = np.random.default_rng(seed)
    with Runtime.load(bundle, threads=threads) as runtime:
        for index, frame in enumerate(walk):
            assert frame.timestamp is not None and frame.depth is not None
            noise = (1 + NOISE * rng.standard_normal(frame.depth.shape)).astype(np.float32)
            given = Prediction(frame.depth * noise, frame.semantics, frame.normals, None)
            fused = temporal(given, frame.pose, frame.timestamp)
            timings = runtime(frame.image).timings
            if index < history:  # the first frames have fewer labels to vote on, and the first one warms up the engine
                continue
            filtering.append(fused.timings["filter"])
            engine.append(sum(timings.values()))
            support.append(temporal.support)
        model, kind = runtime.manifest.model.variant, runtime.backend.description
    return {
        "model": model,
        "engine": kind,
        "cpu": read_cpu().model,
        "threads": threads,
        "frames": frames,
        "engine_ms": float(np.median(engine)),
        "filter_ms": float(np.median(filtering)),
        "filter_ms_max": float(np.max(filtering)),
        "share": float(np.median(np.array(filtering) / np.array(engine))),
        "support": float(np.mean(support)),
    }


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="bundle with depth")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of the engine; the filter uses one")
    parser.add_argument("--json", type=Path, help="also write the report to this file")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    try:
        report = measure(arguments.bundle, arguments.frames, arguments.seed, arguments.threads)
    except M2HError as error:
        parser.error(str(error))
    print(
        f"{report['model']}, {report['engine']}, {report['cpu']}: frame {report['engine_ms']:.1f} ms, filter "
        f"{report['filter_ms']:.1f} ms (at most {report['filter_ms_max']:.1f}), {100 * report['share']:.1f} % of the "
        f"frame; {100 * report['support']:.0f} % of the pixels fused"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
