"""Plan size and build time of every variant, precision, window form and batch, measured by compiling each.

    python benchmarks/engine_sizes.py --json engine_sizes.json
    python benchmarks/engine_sizes.py --networks m2h-small@480x640 --precisions fp32,fp16 --targets 8.6

A network is a variant and, unless it is 224x224, HEIGHTxWIDTH. Every graph is compiled once for each of `--targets`
(separated by '/'). Prints a Markdown table. TensorRT-RTX compiles without a GPU; TensorRT (`--engine tensorrt`) needs
one. Weights are those of `--checkpoint`, or random: neither size nor time depends on them. INT8 and FP8 are
calibrated on a rendered room. FP8 needs targets from 8.9 on: --precisions fp8 --targets 8.9/12.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cli.console import say
from engines.precision.calibration import Calibration, select_frames
from engines.precision.convert import to_fp8, to_fp16, to_int8
from engines.targets import parse_targets
from engines.tensorrt import BuildRecord, TensorRtOptions, build_plan
from export import export_onnx
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.model import M2H, build_model, load_checkpoint
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess

NETWORKS = ("m2h-tiny", "m2h-small", "m2h", "m2h-small@480x640")
PRECISIONS = ("fp32", "fp16", "int8")
WINDOWS = ("standard", "functions")
BATCHES = ("static", "dynamic")
TARGETS = ("8.6", "portable")


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan of the matrix."""

    network: str
    precision: str
    windows: str
    batch: str
    targets: str
    onnx_bytes: int
    record: BuildRecord


def build_cell(
    network: str,
    precision: str,
    windows: str,
    batch: str,
    flavor: str,
    folder: Path,
    *,
    targets: Sequence[str] = TARGETS,
    checkpoint: Path | None = None,
) -> Iterator[Row]:
    """Export and convert one cell of the matrix in `folder`, and compile it for each of `targets`."""
    variant, height, width = parse_network(network)
    source = folder / f"{network}-{windows}-{batch}.onnx"
    if not source.exists():
        export_onnx(
            _network(variant, checkpoint),
            source,
            height=height,
            width=width,
            windows=windows,  # type: ignore[arg-type]
            dynamic_batch=batch == "dynamic",
        )
    model = source.with_name(f"{source.stem}-{precision}.onnx") if precision != "fp32" else source
    if precision == "fp16":
        to_fp16(source, model)
    elif precision in ("int8", "fp8"):
        frames = select_frames(_rooms(2, height, width), count=1, held_out=1)
        convert = to_int8 if precision == "int8" else to_fp8
        convert(source, model, calibration=Calibration(frames))
    for target in targets:
        options = TensorRtOptions(targets=parse_targets(target))
        record = build_plan(model, folder / "model.plan", flavor=flavor, options=options)
        yield Row(network, precision, windows, batch, target, model.stat().st_size, record)
    if model != source:
        model.unlink()


def parse_network(network: str) -> tuple[str, int, int]:
    """Parse `m2h-small@480x640` to variant, height and width; 224 x 224 if no size is given."""
    variant, _, size = network.partition("@")
    try:
        height, width = (int(side) for side in (size or "224x224").split("x"))
    except ValueError:
        raise M2HError(f"network '{network}': give a variant, or VARIANT@HEIGHTxWIDTH") from None
    return variant, height, width


def _network(variant: str, checkpoint: Path | None) -> M2H:
    if checkpoint is not None:
        return load_checkpoint(checkpoint).eval()
    torch.manual_seed(0)
    return build_model(variant).eval()


def _rooms(count: int, height: int, width: int) -> Iterator[NDArray[np.float32]]:
    preprocess = Preprocess(PRESETS["published"], height, width)
    for seed in range(count):
        yield preprocess(render_room(seed, 0, height, width).image)


def markdown(rows: list[Row]) -> str:
    """Format the rows as a table: sizes in MB (10^6 bytes), time in seconds, and fused attention blocks."""
    lines = [
        "| network | precision | windows | batch | target | ONNX (MB) | plan (MB) | build (s) | attention fused |",
        "|---|---|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.network} | {row.precision} | {row.windows} | {row.batch} | {row.targets} | {row.onnx_bytes / 1e6:.1f} "
        f"| {row.record.plan_bytes / 1e6:.1f} | {row.record.seconds:.1f} | {row.record.fused_attention} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in (("networks", NETWORKS), ("precisions", PRECISIONS), ("windows", WINDOWS), ("batch", BATCHES)):
        parser.add_argument(f"--{name}", default=",".join(values), help=f"of {','.join(values)}")
    parser.add_argument("--engine", default="tensorrt-rtx", help="tensorrt-rtx or tensorrt")
    parser.add_argument("--targets", default="/".join(TARGETS), help="8.6,rtx4090,... or portable; several by '/'")
    parser.add_argument("--checkpoint", type=Path, help="weights; only with one network")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    cells = itertools.product(*(getattr(options, n).split(",") for n in ("networks", "windows", "batch", "precisions")))
    rows: list[Row] = []
    try:
        targets = options.targets.split("/")
        with tempfile.TemporaryDirectory(prefix="m2h-sizes-") as folder:
            for network, windows, batch, precision in cells:
                say(f"{network} {precision} {windows} {batch}")
                rows += build_cell(
                    network,
                    precision,
                    windows,
                    batch,
                    options.engine,
                    Path(folder),
                    targets=targets,
                    checkpoint=options.checkpoint,
                )
    except M2HError as error:
        say(str(error), style="red")
        return error.exit_code
    print(markdown(rows))
    for note in dict.fromkeys(note for row in rows for note in row.record.notes):
        print(f"\n{note}.")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
