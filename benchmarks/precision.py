"""PSNR of every output in each precision on a CPU, and size and build time of the TensorRT-RTX plans.

    python benchmarks/precision.py --networks m2h-tiny,m2h-small,m2h --json precision.json

m2h-tiny has the shipped weights; m2h-small and m2h have the reproducible random ones of tests/golden, which amplify
rounding more than trained weights do. Graphs are 224x224. They are calibrated on rendered rooms and compared with
float32 on others, on ONNX Runtime's CPU. TensorRT-RTX compiles without a GPU; no plan is run. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from cli.console import say
from engines.precision.calibration import Calibration, CalibrationFrames, select_frames
from engines.precision.convert import PrecisionReport, to_fp8, to_fp16, to_int8
from engines.tensorrt import TensorRtOptions, build_plan
from export import export_onnx
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.model import M2H, load_checkpoint
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from m2h_deploy.tasks import TASKS
from tests.golden import filler

SIDE = 224
#: Series of rooms that the frames are of.
SERIES = 4
TARGETS = ("8.9", "12.0")


@dataclasses.dataclass(frozen=True)
class Row:
    """One network in one precision."""

    network: str
    precision: str
    layers: int
    """Layers that compute in 8 bits."""
    psnr: dict[str, float]
    """Decibels by output."""
    onnx_bytes: int
    plans: dict[str, tuple[int, float]]
    """Bytes and seconds to build, by compute capability."""


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="m2h-tiny,m2h-small,m2h")
    parser.add_argument("--precisions", default="fp16,int8,fp8")
    parser.add_argument("--frames", type=int, default=8, help="rooms to calibrate on")
    parser.add_argument("--held-out", type=int, default=4, help="rooms to compare on")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    frames = room_frames(options.frames, options.held_out)
    rows: list[Row] = []
    try:
        for network in options.networks.split(","):
            rows += measure(network, options.precisions.split(","), frames)
    except M2HError as error:
        say(str(error), style="red")
        return error.exit_code
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    return 0


def room_frames(count: int, held_out: int) -> CalibrationFrames:
    """Render rooms and choose those to calibrate on and to compare on."""
    preprocess = Preprocess(PRESETS["published"], SIDE, SIDE)
    rooms = (preprocess(room.image).copy() for room in Rooms(count + held_out, SERIES))
    return select_frames(rooms, count=count, held_out=held_out)


def measure(network: str, precisions: list[str], frames: CalibrationFrames) -> Iterator[Row]:
    """Export a network, convert it to each precision, compare, and compile."""
    with tempfile.TemporaryDirectory(prefix="m2h-precision-") as folder:
        source, plan = Path(folder) / "model.onnx", Path(folder) / "model.plan"
        say(f"{network}: export")
        export_onnx(load_network(network, Path(folder)), source, height=SIDE, width=SIDE)
        for precision in precisions:
            say(f"{network}: {precision}")
            model = source.with_name(f"{precision}.onnx")
            report = convert(source, model, precision, frames)
            plans = {}
            for target in TARGETS:
                record = build_plan(model, plan, flavor="tensorrt-rtx", options=TensorRtOptions(targets=(target,)))
                plans[target] = record.plan_bytes, record.seconds
            yield Row(network, precision, len(report.quantized), report.psnr, model.stat().st_size, plans)


def load_network(network: str, folder: Path) -> M2H:
    """Return the shipped network, or a published one with the weights of tests/golden."""
    if network == "m2h-tiny":
        return load_checkpoint(network).eval()
    weights = filler.weights(network.replace("-", "_"))
    checkpoint = folder / "checkpoint.pt"
    torch.save({name: torch.from_numpy(value) for name, value in weights.items()}, checkpoint)
    return load_checkpoint(checkpoint).eval()


def convert(source: Path, target: Path, precision: str, frames: CalibrationFrames) -> PrecisionReport:
    """Write `source` in `precision` to `target`."""
    if precision == "fp16":
        return to_fp16(source, target, frames=frames)
    # Ranges are shared by INT8 and FP8.
    calibration = Calibration(frames, cache=source.parent / "ranges")
    return (to_int8 if precision == "int8" else to_fp8)(source, target, calibration=calibration)


def markdown(rows: list[Row]) -> str:
    """Format the rows as a table: PSNR in dB, sizes in MB (10^6 bytes), seconds of each build."""
    headings = ["network", "precision", "8-bit layers", *TASKS, "ONNX (MB)"]
    headings += [f"plan {target} (MB)" for target in TARGETS] + [f"build {target} (s)" for target in TARGETS]
    lines = [f"| {' | '.join(headings)} |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        cells = [row.network, row.precision, str(row.layers), *(f"{row.psnr[task]:.1f}" for task in TASKS)]
        cells += [f"{row.onnx_bytes / 1e6:.1f}", *(f"{row.plans[target][0] / 1e6:.1f}" for target in TARGETS)]
        cells += [f"{row.plans[target][1]:.1f}" for target in TARGETS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
