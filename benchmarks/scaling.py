"""Measure how latency and memory grow with the image's size, the batch and the threads.

    python benchmarks/scaling.py --variants m2h-tiny,m2h-small --plot scaling.png --json scaling.json

Every cell is a process of its own with one ONNX Runtime session, so that its memory is its own: the peak resident size,
less that of the process before the session was made. Latency is the median of the runs. The exponents are slopes of a
straight line through the logarithms: 1 is linear. The backbone and the decoder are fitted apart, from ONNX Runtime's
profile of one thread; beside them are the exponents of the multiply-accumulates in the graph, which do not depend on
the machine. Weights are random: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from m2h_deploy.blocks import block_of
from m2h_deploy.profiling.costs import node_costs
from m2h_deploy.profiling.hardware import read_cpu

BATCHES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Cell:
    """One measured point; times in milliseconds for the whole batch, memory in MB."""

    variant: str
    height: int
    width: int
    batch: int
    threads: int
    ms: float
    cpu_ms: float
    peak_mb: float
    backbone_ms: float | None = None
    decoder_ms: float | None = None
    backbone_gmacs: float | None = None
    decoder_gmacs: float | None = None

    @property
    def pixels(self) -> int:
        """Pixels of one image."""
        return self.height * self.width


def write_graph(variant: str, height: int, width: int, path: Path) -> None:
    """Write the deploy form of a network with random weights and a free batch size, unchecked."""
    from export import ExportOptions
    from export.exporter import make_graph
    from m2h_deploy.model import build_model

    model = build_model(variant).eval().requires_grad_(False)
    onnx.save(make_graph(model, ExportOptions(height=height, width=width, dynamic_batch=True)), path)


def measure_here(path: Path, batch: int, threads: int, runs: int, *, profile: bool) -> dict[str, float]:
    """Measure one cell in this process."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = options.enable_mem_reuse = False  # as the runtime
    with tempfile.TemporaryDirectory() as folder:
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        before = peak_bytes()
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        height, width = session.get_inputs()[0].shape[2:]
        image = np.random.default_rng(0).standard_normal((batch, 3, height, width), dtype=np.float32)
        wall, cpu = [], []
        for _ in range(runs + 1):
            start, used = time.perf_counter(), time.process_time()
            session.run(None, {"image": image})
            cpu.append(1e3 * (time.process_time() - used))
            wall.append(1e3 * (time.perf_counter() - start))
        result = {"ms": statistics.median(wall[1:]), "cpu_ms": statistics.median(cpu[1:])}
        result["peak_mb"] = (peak_bytes() - before) / 1e6
        if profile:
            result |= profiled_parts(Path(session.end_profiling()))
    return result


def profiled_parts(file: Path) -> dict[str, float]:
    """Return the milliseconds per run of backbone and decoder in ONNX Runtime's profile: the least of each node."""
    least: dict[str, float] = {}
    for event in json.loads(file.read_text()):
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            least[name] = min(least.get(name, float("inf")), event["dur"] / 1e3)
    parts = {"backbone_ms": 0.0, "decoder_ms": 0.0}
    for name, milliseconds in least.items():
        parts["backbone_ms" if block_of(name) == "backbone" else "decoder_ms"] += milliseconds
    return parts


def peak_bytes() -> int:
    """Return this process's peak resident memory in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))


def measure(path: Path, batch: int, threads: int, runs: int, *, profile: bool = False) -> dict[str, float]:
    """Measure one cell in a process of its own."""
    arguments = [str(path), str(batch), str(threads), str(runs), str(int(profile))]
    done = subprocess.run(
        [sys.executable, __file__, "--cell", *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def graph_macs(path: Path) -> dict[str, float]:
    """Return the multiply-accumulates of backbone and decoder at batch 1, in units of 1e9."""
    parts = {"backbone_gmacs": 0.0, "decoder_gmacs": 0.0}
    for cost in node_costs(onnx.load(path)):
        parts["backbone_gmacs" if cost.block == "backbone" else "decoder_gmacs"] += (cost.macs or 0) / 1e9
    return parts


def measure_variant(
    variant: str, sizes: Sequence[tuple[int, int]], threads: Sequence[int], runs: int, folder: Path
) -> list[Cell]:
    """Measure all cells of one network: every size at batch 1, every batch at the first size."""
    cells = []
    for height, width in sizes:
        path = folder / f"{variant}-{height}x{width}.onnx"
        write_graph(variant, height, width, path)
        for count in threads:
            for batch in BATCHES if (height, width) == sizes[0] else (1,):
                print(f"{variant} {height}x{width}, batch {batch}, {count} threads", file=sys.stderr)
                values = measure(path, batch, count, runs)
                if batch == 1 and count == threads[0]:
                    profiled = measure(path, 1, 1, max(1, runs // 2), profile=True)
                    values |= graph_macs(path) | {key: profiled[key] for key in ("backbone_ms", "decoder_ms")}
                cells.append(Cell(variant, height, width, batch, count, **values))
        path.unlink()
    return cells


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of a least-squares line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def exponents(cells: Sequence[Cell]) -> dict[str, float]:
    """Return the exponents of one network by name."""
    first = min(cell.threads for cell in cells)
    by_size = [cell for cell in cells if cell.batch == 1 and cell.threads == first]
    by_batch = [cell for cell in cells if cell.pixels == cells[0].pixels and cell.threads == first]
    pixels = [cell.pixels for cell in by_size]
    result = {}
    for name in ("ms", "peak_mb", "backbone_ms", "decoder_ms", "backbone_gmacs", "decoder_gmacs"):
        values = [getattr(cell, name) for cell in by_size]
        result[f"{name} over pixels"] = exponent(pixels, values)
    for name in ("ms", "peak_mb"):
        result[f"{name} over batch"] = exponent([c.batch for c in by_batch], [getattr(c, name) for c in by_batch])
    return result


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Draw latency and memory over the pixels, and latency over the batch, on logarithmic axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for index, variant in enumerate(dict.fromkeys(c.variant for c in cells)):
        for threads, style in zip(sorted({c.threads for c in cells}), ("-", "--"), strict=False):
            own = [c for c in cells if c.variant == variant and c.threads == threads]
            sizes = [c for c in own if c.batch == 1]
            batches = [c for c in own if c.pixels == cells[0].pixels]
            options = {"color": f"C{index}", "linestyle": style, "marker": "o", "markersize": 4}
            label = f"{variant}, {threads} thread{'s' if threads > 1 else ''}"
            axes[0].plot([c.pixels for c in sizes], [c.ms for c in sizes], label=label, **options)
            axes[1].plot([c.pixels for c in sizes], [c.peak_mb for c in sizes], **options)
            axes[2].plot([c.batch for c in batches], [c.ms / c.batch for c in batches], **options)
    shapes = {cell.pixels: f"{cell.width}x{cell.height}" for cell in cells}
    for axis, title, unit in zip(
        axes, ("Latency", "Peak memory of the session", "Latency per image"), ("ms", "MB", "ms"), strict=True
    ):
        axis.set(xscale="log", yscale="log", title=title, ylabel=unit)
        axis.grid(visible=True, which="both", alpha=0.25)
        ticks = BATCHES if axis is axes[2] else tuple(shapes)
        labels = [str(batch) for batch in BATCHES] if axis is axes[2] else list(shapes.values())
        axis.set_xticks(ticks, labels, rotation=0 if axis is axes[2] else 45)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"images in a batch, {shapes[cells[0].pixels]}" if axis is axes[2] else "image, batch 1")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run the benchmark from the command line."""
    if sys.argv[1:2] == ["--cell"]:
        path, batch, threads, runs, profile = sys.argv[2:]
        cell = measure_here(Path(path), int(batch), int(threads), int(runs), profile=profile == "1")
        print(json.dumps(cell))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="m2h-tiny,m2h-small,m2h", help="separated by commas")
    parser.add_argument("--threads", default=f"1,{min(2, len(os.sched_getaffinity(0)))}", help="separated by commas")
    parser.add_argument("--sizes", default="224x224,280x280,336x336,420x420,640x480", help="width x height")
    parser.add_argument("--runs", type=int, default=5, help="per cell, after one warm-up run")
    parser.add_argument("--json", type=Path, help="write the cells to this file too")
    parser.add_argument("--plot", type=Path, help="draw them into this PNG")
    options = parser.parse_args()
    sizes = [(int(height), int(width)) for width, height in (size.split("x") for size in options.sizes.split(","))]
    threads = sorted({int(count) for count in options.threads.split(",")})
    cells: list[Cell] = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variants.split(","):
            own = measure_variant(variant, sizes, threads, options.runs, Path(folder))
            cells += own
            print(f"\n{variant}: " + ", ".join(f"{name} {value:.2f}" for name, value in exponents(own).items()))
    print("\n| network | image | batch | threads | ms | CPU ms | peak MB |\n|---|---|---:|---:|---:|---:|---:|")
    for c in cells:
        image = f"{c.width}x{c.height}"
        print(f"| {c.variant} | {image} | {c.batch} | {c.threads} | {c.ms:.0f} | {c.cpu_ms:.0f} | {c.peak_mb:.0f} |")
    print(f"\nONNX Runtime {ort.__version__}, Python {platform.python_version()}, {read_cpu().model}, {date.today()}.")
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=2) + "\n")
    if options.plot:
        plot(cells, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
