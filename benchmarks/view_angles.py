"""Measure the factor that a network's depth lacks on cameras with other views: is it the focal length?

    python benchmarks/view_angles.py --checkpoint m2h-tiny --rooms 16

Rooms are rendered by cameras with horizontal views from 50 to 100 degrees, and with images of other shapes. For each
camera, the factor is the mean over rooms of the median logarithm of true by predicted depth; beside it is what
`m2h_deploy.calibration.focal` estimates from the focal length alone.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

from engines import build_bundle
from export import export_onnx
from m2h_deploy import Runtime
from m2h_deploy.calibration.focal import focal_scale
from m2h_deploy.data.rooms.render import render_room, room_intrinsics
from m2h_deploy.metrics import DepthMetric
from m2h_deploy.model import load_checkpoint
from m2h_deploy.profiling.hardware import read_cpu

#: Horizontal field of view in degrees (None: the training's), height and width.
CAMERAS = (
    *((fov, 240, 320) for fov in (50.0, 57.0, None, 70.0, 80.0, 90.0, 100.0)),
    (None, 180, 320),
    (80.0, 180, 320),
    (None, 320, 320),
    (50.0, 320, 240),
)


def measure(runtime: Runtime, fov: float | None, height: int, width: int, rooms: int) -> tuple[float, float, float]:
    """Return the factor that depth lacks, the standard error of its logarithm, and the mean relative error."""
    factors, metric = [], DepthMetric()
    for index in range(rooms):
        frame = render_room(9000, index, height, width, fov)
        depth = runtime(frame.image).depth
        assert depth is not None and frame.depth is not None
        factors.append(float(np.median(np.log(frame.depth / depth))))
        metric.update(depth, frame.depth)
    error = float(np.std(factors, ddof=1) / rooms**0.5)
    return float(np.exp(np.mean(factors))), error, metric.compute()["abs_rel"]


def main() -> None:
    """Print a row for each camera."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="m2h-tiny")
    parser.add_argument("--rooms", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model, folder = load_checkpoint(options.checkpoint), Path(name)
        bundle = build_bundle(
            export_onnx(model, folder / "m.onnx", height=224, width=224).path, folder / "bundle", engine="openvino"
        )
        print(f"{read_cpu().model}, Python {platform.python_version()}, {date.today()}")
        print("view       image      factor (+- of its log)   by the focal length   abs rel")
        with Runtime.load(bundle.path) as runtime:
            for fov, height, width in CAMERAS:
                factor, error, abs_rel = measure(runtime, fov, height, width, options.rooms)
                expected = focal_scale(room_intrinsics(height, width, fov), height, width)
                view = "training" if fov is None else f"{fov:g} deg"
                print(
                    f"{view:10s} {width}x{height}    {factor:.3f} (+- {error:.3f})"
                    f"          {expected:.3f}                 {abs_rel:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
