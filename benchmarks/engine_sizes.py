"""Plan size and build time of every variant, precision, window form and batch, compiled for real.

    python benchmarks/engine_sizes.py --json engine_sizes.json
    python benchmarks/engine_sizes.py --variants m2h-small --precisions fp32,fp16 --targets 8.6

Prints a Markdown table. TensorRT-RTX compiles without a GPU; TensorRT (`--engine tensorrt`) needs one. Weights are
those of `--checkpoint`, or random: neither size nor time depends on them. INT8 is calibrated on rendered rooms.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from engines.calibration import Calibration, select_frames
from engines.precision import to_fp16, to_int8
from engines.targets import parse_targets
from engines.tensorrt import BuildOptions, BuildRecord, build_plan
from export import export_onnx
from m2h_deploy.console import say
from m2h_deploy.data.rooms import render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.model import M2H, build_model, load_checkpoint
from m2h_deploy.preprocess import PRESETS, Preprocess

VARIANTS = ("m2h-small", "m2h")
PRECISIONS = ("fp32", "fp16", "int8")
WINDOWS = ("standard", "functions")
BATCHES = ("static", "dynamic")
SIDE = 224


@dataclasses.dataclass(frozen=True)
class Row:
    """One plan of the matrix."""

    variant: str
    precision: str
    windows: str
    batch: str
    onnx_bytes: int
    record: BuildRecord


def build_one(
    variant: str,
    precision: str,
    windows: str,
    dynamic_batch: bool,
    flavour: str,
    folder: Path,
    *,
    targets: tuple[str, ...] = (),
    checkpoint: Path | None = None,
) -> BuildRecord:
    """Export, convert and compile one cell of the matrix in `folder`."""
    return _row(variant, precision, windows, dynamic_batch, flavour, folder, targets, checkpoint).record


def _row(
    variant: str,
    precision: str,
    windows: str,
    dynamic_batch: bool,
    flavour: str,
    folder: Path,
    targets: tuple[str, ...],
    checkpoint: Path | None,
) -> Row:
    batch = BATCHES[dynamic_batch]
    source = folder / f"{variant}-{windows}-{batch}.onnx"
    if not source.exists():
        network = _network(variant, checkpoint)
        export_onnx(network, source, height=SIDE, width=SIDE, windows=windows, dynamic_batch=dynamic_batch)  # type: ignore[arg-type]
    model = source.with_name(f"{source.stem}-{precision}.onnx") if precision != "fp32" else source
    if precision == "fp16":
        to_fp16(source, model)
    elif precision == "int8":
        frames = select_frames(_rooms(4), count=3, held_out=1)
        to_int8(source, model, calibration=Calibration(frames, cache=folder / "ranges"))
    record = build_plan(model, folder / "model.plan", flavour=flavour, options=BuildOptions(targets=targets))
    return Row(variant, precision, windows, batch, model.stat().st_size, record)


def _network(variant: str, checkpoint: Path | None) -> M2H:
    if checkpoint is not None:
        return load_checkpoint(checkpoint).eval()
    torch.manual_seed(0)
    return build_model(variant).eval()


def _rooms(count: int) -> Iterator:
    preprocess = Preprocess(PRESETS["published"], SIDE, SIDE)
    for seed in range(count):
        yield preprocess(render_room(seed, 0, SIDE, SIDE).image)


def markdown(rows: list[Row]) -> str:
    """The table: sizes in megabytes (10^6), time in seconds, and how many attention blocks were fused."""
    lines = [
        "| variant | precision | windows | batch | ONNX (MB) | plan (MB) | build (s) | attention fused |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.variant} | {row.precision} | {row.windows} | {row.batch} | {row.onnx_bytes / 1e6:.1f} "
        f"| {row.record.plan_bytes / 1e6:.1f} | {row.record.seconds:.1f} | {row.record.fused_attention} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, values in (("variants", VARIANTS), ("precisions", PRECISIONS), ("windows", WINDOWS), ("batch", BATCHES)):
        parser.add_argument(f"--{name}", default=",".join(values), help=f"of {','.join(values)}")
    parser.add_argument("--engine", default="tensorrt-rtx", help="tensorrt-rtx or tensorrt")
    parser.add_argument("--targets", default="portable", help="8.6,rtx4090,... or portable")
    parser.add_argument("--checkpoint", type=Path, help="weights; only with one variant")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    options = parser.parse_args()
    cells = itertools.product(*(getattr(options, n).split(",") for n in ("variants", "windows", "batch", "precisions")))
    rows: list[Row] = []
    try:
        targets = parse_targets(options.targets)
        with tempfile.TemporaryDirectory(prefix="m2h-sizes-") as folder:
            for variant, windows, batch, precision in cells:
                say(f"{variant} {precision} {windows} {batch}")
                place = Path(folder)
                rows.append(
                    _row(
                        variant,
                        precision,
                        windows,
                        batch == "dynamic",
                        options.engine,
                        place,
                        targets,
                        options.checkpoint,
                    )
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
