"""M2H on an NVIDIA GPU: parity, then the latency of PyTorch, TensorRT and ONNX Runtime against the GPU's roofline.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --ways "tensorrt fp16,PyTorch eager half" --cells m2h:480x640:1 --minutes 4
    python benchmarks/gpu.py --device cpu --cells m2h-tiny:112x140:1 --runs 2     # the same program without a GPU

In an image with PyTorch for CUDA, in the clone (`onnxruntime` and `onnxruntime-gpu` exclude each other):

    pip uninstall -y onnxruntime && pip install -e '.[export,precision,data,bench,gpu,tensorrt]'

For compute capability 7.5, 8.0, 8.6, 8.9 and 12.x also the extra `tensorrt-rtx`. If the driver is older than CUDA 13:
`gpu-cu12`, `tensorrt-cu12` and `tensorrt-rtx-cu12` in place of these extras.

Prints a row per way to run a network, and with `--json` replaces the file after each row. Times are milliseconds:

    queued         events on the engine's stream around many runs that are enqueued back to back, per run: throughput
    single-shot    events around one run on an idle GPU: what a robot sees; median and p99
    frame          wall time from an input tensor on the host to outputs on the host
    image          wall time from a camera's image, uint8 480 x 640, to a `Prediction` by `Runtime`
    roofline       the larger of the multiply-adds of the deploy form over the measured half-precision matrix rate, and
                   of its bytes over the measured copy rate

All ways have the same definition; on a CPU wall time stands in for events. "raw pixels" is the graph that contains
preprocess and postprocess. PyTorch's half precision is autocast. Compiling takes most of the time, so the deploy form
compiled and TensorRT in INT8 are run only if `--ways` selects them. A way that cannot run on the machine stays in the
table, with the reason. Networks have random weights except for parity, which is measured on the reproducible ones of
tests/golden, in fp32 without TF32. INT8 is calibrated on one frame: enough for time, not for accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu_cell import Bench, Cell, Workspace
from benchmarks.gpu_engines import CPU_ENGINES, GPU_ENGINES, EngineWay
from benchmarks.gpu_pytorch import COMPILED_WAYS, EAGER_WAYS, PARITY, TorchWay, parity_rows
from benchmarks.gpu_record import Record, Row, guarded
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.files.atomic import check_writable, scratch_folder
from m2h_deploy.profiling.hardware import cpu_name, read_nvidia
from m2h_deploy.profiling.telemetry import find_probes

CELLS = "m2h-small:224x224:1,m2h-tiny:224x224:1"
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "numpy")
TIME_IS_UP = "not run: time was up"

Way = TorchWay | EngineWay


def chosen_ways(device: str, text: str | None) -> tuple[Sequence[Way], bool]:
    """Return the ways that `text`, comma-separated names or parts of names, selects, and whether to measure parity.

    Without `text` these are all but those that are run by name only. Raises M2HError if a part of it selects nothing.
    """
    ways = (*EAGER_WAYS, *GPU_ENGINES, *(CPU_ENGINES if device == "cpu" else ()), *COMPILED_WAYS)
    if text is None:
        return [way for way in ways if not way.by_name], True
    names = [PARITY, *(way.name for way in ways)]
    found: set[str] = set()
    for part in (part.strip() for part in text.split(",")):
        # A whole name selects only itself, even if others contain it.
        matches = [name for name in names if name == part] or [name for name in names if part and part in name]
        if not matches:
            raise M2HError(f"--ways '{part}': it is part of no name; the ways are {', '.join(names)}")
        found.update(matches)
    return [way for way in ways if way.name in found], PARITY in found


def measure(bench: Bench, cell: Cell, ways: Sequence[Way], time_is_up: Callable[[], bool]) -> Iterator[Row]:
    """Measure the ways of one cell. Exports only if an engine can run."""
    refusals = {way.name: way.refusal(bench) for way in ways}
    with scratch_folder("m2h-gpu-") as folder:
        work = Workspace(cell, folder)
        engines = [way.name for way in ways if way.exports and refusals[way.name] is None]
        if engines and not time_is_up():
            try:
                work.export(bench.roof)
            except Exception as error:  # the exporter's errors share no base type
                refusals |= dict.fromkeys(engines, f"the export failed: {first_line(error)[:200]}")
        for way in ways:
            note = TIME_IS_UP if time_is_up() else refusals[way.name]
            if note is None:
                yield from guarded(cell, way.name, way.rows(bench, work))
            else:
                yield Row(str(cell), way.name, note=note)


def about(bench: Bench) -> dict[str, Any]:
    """Return the machine, package versions and measured limits, for the record."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    on_gpu = bench.capability is not None
    return {
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(Path("/")),
        "capability": bench.capability,
        "driver": read_nvidia().driver,
        "packages": found,
        "date": time.strftime("%Y-%m-%d"),
        "runs": bench.timer.runs,
        "matrix_tflops": bench.roof.matrix_tflops,
        "copy_gbs": bench.roof.copy_gbs,
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; None: that of the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cells", default=CELLS, help="VARIANT:HEIGHTxWIDTH:BATCH, comma separated (%(default)s)")
    parser.add_argument("--ways", help="names of rows, or parts of names, comma separated (default: see above)")
    parser.add_argument("--runs", type=int, default=100, help="runs of each measurement (%(default)s)")
    parser.add_argument("--minutes", type=float, default=4, help="start no row after this time (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too, after every row")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line."""
    start, options = time.monotonic(), parse(arguments)
    console = Console(stderr=True)
    try:
        cells = [Cell.parse(text.strip()) for text in options.cells.split(",")]
        ways, parity = chosen_ways(options.device, options.ways)
        path = None if options.json is None else check_writable(options.json)
        if options.runs < 1:
            raise M2HError(f"--runs {options.runs}: must be at least 1")
        bench = Bench.on(options.device, options.runs)
    except M2HError as error:
        console.print(str(error), style="red", markup=False)
        return error.exit_code

    def time_is_up() -> bool:
        return time.monotonic() - start >= 60 * options.minutes

    probes = find_probes()
    record = Record(about(bench), lambda: {k: v for probe in probes for k, v in probe.read().items()}, path)
    if parity:
        for row in [Row("", PARITY, note=TIME_IS_UP)] if time_is_up() else guarded("", PARITY, parity_rows(bench)):
            record.add(row)
    for cell in cells:
        with console.status(f"measuring {cell}"):
            for row in measure(bench, cell, ways, time_is_up):
                record.add(row)
    record.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
