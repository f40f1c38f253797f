"""M2H on an NVIDIA GPU: parity, then the latency of PyTorch, TensorRT-RTX and ONNX Runtime against the GPU's roofline.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --cells m2h-tiny:112x140:1 --runs 2     # the same program without a GPU

Prints one table with a row per way to run a network. GPU ms are medians of CUDA events around the kernels (wall time on
a CPU), with p99; frame ms is the wall time from an image on the host to results on the host. Roofline: the larger of
multiply-adds over the GPU's measured half-precision matrix rate and bytes over its measured copy rate. A way that
cannot run on the machine stays in the table, with the reason as text. Networks have random weights except for parity,
which is measured on the reproducible ones of tests/golden. A cell is VARIANT:HEIGHTxWIDTH:BATCH.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console

from engines import Lowering, OnnxRuntimeOptions, build_bundle
from engines.options import EngineOptions
from export import export_onnx
from export.deploy_form import to_deploy
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.model import M2H, build_model, load_checkpoint, save_checkpoint
from m2h_deploy.parity import verify
from m2h_deploy.profiling import percentile
from m2h_deploy.profiling.costs import node_costs

CELLS = "m2h:224x224:1,m2h:224x224:8,m2h-small:224x224:1,m2h-small:224x224:8,m2h-small:480x640:1,m2h-tiny:224x224:1"
PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "cuda-bindings", "numpy")
ENGINES: tuple[tuple[str, str, EngineOptions | None], ...] = (
    ("tensorrt-rtx", "fp16", None),
    ("tensorrt-rtx", "int8", None),
    ("tensorrt", "fp16", None),
    ("onnxruntime", "fp32", OnnxRuntimeOptions(provider="cuda")),
    ("onnxruntime", "fp16", OnnxRuntimeOptions(provider="cuda")),
    ("onnxruntime", "fp16", OnnxRuntimeOptions(provider="nv-tensorrt-rtx")),
)
CPU_ENGINES: tuple[tuple[str, str, EngineOptions | None], ...] = (
    ("onnxruntime", "fp32", None),
    ("openvino", "fp32", None),
)


@dataclass(frozen=True)
class Cell:
    """One network at one size and batch."""

    variant: str
    height: int
    width: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Parse VARIANT:HEIGHTxWIDTH:BATCH. Raises M2HError on anything else."""
        try:
            variant, size, batch = text.split(":")
            height, width = (int(side) for side in size.split("x"))
            return cls(variant, height, width, int(batch))
        except ValueError:
            raise M2HError(f"cell '{text}': give VARIANT:HEIGHTxWIDTH:BATCH, such as m2h-small:224x224:1") from None

    def __str__(self) -> str:
        return f"{self.variant} {self.height}x{self.width} batch {self.batch}"


@dataclass(frozen=True)
class Row:
    """One way to run a cell, or the reason why it cannot be run."""

    cell: str
    way: str
    gpu_ms: float | None = None
    gpu_p99_ms: float | None = None
    frame_ms: float | None = None
    roofline_ms: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Roof:
    """Measured limits of the device."""

    matrix_tflops: float
    copy_gbs: float

    def least_ms(self, macs: int, nbytes: int) -> float:
        """Return the least time in milliseconds of a graph with `macs` multiply-adds that moves `nbytes` bytes."""
        return 1e3 * max(2 * macs / (self.matrix_tflops * 1e12), nbytes / (self.copy_gbs * 1e9))


class Bench:
    """The device, the number of runs to measure on it, and its limits."""

    def __init__(self, device: str, runs: int) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise M2HError("no CUDA device that this PyTorch can use: run this on a machine with one, or --device cpu")
        self.device, self.runs, self.cuda = torch.device(device), runs, device == "cuda"
        # Parity is judged in IEEE float32, without TF32.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.half = torch.float16 if self.cuda else torch.bfloat16
        self.roof = self._roof()

    def times(self, run: Callable[[], Any]) -> list[float]:
        """Return the milliseconds of `runs` runs after a few warm-up runs."""
        for _ in range(max(2, self.runs // 5)):
            run()
        if not self.cuda:
            return [self._wall(run) for _ in range(self.runs)]
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.runs)]
        for start, end in events:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]

    def frames(self, run: Callable[[], Any]) -> float:
        """Return the median wall time in milliseconds; `run` waits for its results."""
        run()
        return float(np.median([self._wall(run) for _ in range(self.runs)]))

    @staticmethod
    def _wall(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)

    def _roof(self) -> Roof:
        side, megabytes = (8192, 1024) if self.cuda else (1024, 64)
        a, b = (torch.rand(side, side, device=self.device, dtype=self.half) for _ in range(2))
        source = torch.zeros(megabytes << 20, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        product, copy = min(self.times(lambda: a @ b)), min(self.times(lambda: target.copy_(source)))
        return Roof(2e-9 * side**3 / product, 2 * source.numel() / copy / 1e6)


def parity_rows(bench: Bench, golden: Path) -> Iterator[Row]:
    """Compare the reference on this device with the golden measurements of the published code, by output."""
    from tests.golden import filler

    for file in sorted(golden.glob("*_1x3x224x224_seed0.npz")):
        name = file.name.split("_1x3")[0]
        with tempfile.TemporaryDirectory() as folder:
            weights = {key: torch.from_numpy(value) for key, value in filler.weights(name).items()}
            torch.save(weights, Path(folder) / "weights.pt")
            model = load_checkpoint(Path(folder) / "weights.pt").to(bench.device)
        image, measured = torch.from_numpy(filler.image(1, 224, 224)).to(bench.device), np.load(file)
        for way in ("fp32", "half"):
            with torch.inference_mode(), torch.autocast(bench.device.type, bench.half, enabled=way == "half"):
                outputs = model(image)
            words = ", ".join(f"{task} {_worst_share(value, measured, task):.1e}" for task, value in outputs.items())
            yield Row(f"{name} 224x224", f"golden parity of PyTorch {way}", note=f"largest errors: {words}")


def _worst_share(value: torch.Tensor, measured: Any, task: str) -> float:
    """Return the largest error of an output at the measured positions, every eighth pixel, over its deviation."""
    error = np.abs(value[:, :, ::8, ::8].float().cpu().numpy() - measured[f"out_{task}"])
    return float(error.max() / measured[f"stat_{task}"][1])


def torch_rows(bench: Bench, cell: Cell, model: M2H, least: dict[str, float]) -> Iterator[Row]:
    """Measure PyTorch eager and compiled, reference and deploy form, full and half precision."""
    image = torch.rand(cell.batch, 3, cell.height, cell.width, device=bench.device)
    forms = {"reference": model, "deploy": to_deploy(model.cpu(), cell.height, cell.width)}
    for form, network in forms.items():
        network = network.to(bench.device)
        for precision, compiled in (("fp32", False), ("half", False), ("half", True)):
            run = _torch_run(bench, torch.compile(network) if compiled else network, image, precision == "half")
            way = f"{'torch.compile' if compiled else 'PyTorch eager'} {precision}, {form}"
            try:
                times = bench.times(run)
            except Exception as error:  # errors of compilers and of CUDA share no base type
                yield Row(str(cell), way, note=first_line(error)[:200])
                continue
            yield Row(str(cell), way, *_median_and_tail(times), roofline_ms=least[form])


def _torch_run(bench: Bench, network: Any, image: torch.Tensor, half: bool) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode(), torch.autocast(bench.device.type, bench.half, enabled=half):
            return network(image)

    return run


def engine_rows(bench: Bench, cell: Cell, model: M2H, folder: Path, least: dict[str, float]) -> Iterator[Row]:
    """Measure bundles of every engine kind: parity with `verify`, latency of the engine and of the whole call."""
    checkpoint = save_checkpoint(model.cpu(), folder / "model.safetensors")
    graph = export_onnx(model, folder / "model.onnx", height=cell.height, width=cell.width, batch=cell.batch).path
    rooms = folder / "rooms"
    write_multitask_folder(rooms, 8, 7, cell.height, cell.width, split="val")
    for kind, precision, options in ENGINES if bench.cuda else CPU_ENGINES:
        way = f"{kind} {precision}" + (f", {options.provider}" if isinstance(options, OnnxRuntimeOptions) else "")
        lowering = Lowering(frames=str(rooms), count=4) if precision == "int8" else None
        try:
            bundle = build_bundle(
                graph, folder / "bundle", engine=kind, precision=precision, options=options, lowering=lowering
            )
            yield from _bundle_rows(bench, cell, way, bundle, least["deploy"])
            if cell.batch == 1:
                result = verify(bundle.path, str(checkpoint), rooms, limit=8)
                yield Row(str(cell), f"{way}, verify", note=result.summary)
        except Exception as error:  # such as a missing provider or an unsupported GPU: the reason becomes the row
            yield Row(str(cell), way, note=first_line(error)[:200])


def _bundle_rows(bench: Bench, cell: Cell, way: str, bundle: Bundle, least: float) -> Iterator[Row]:
    image = np.random.default_rng(0).standard_normal((cell.batch, 3, cell.height, cell.width), dtype=np.float32)
    graphs = (True, False) if bundle.manifest.engine.kind.startswith("tensorrt") else (True,)
    for with_graph in graphs:
        start = time.perf_counter()
        backend = open_backend(bundle, BackendOptions(extra={"cuda_graph": with_graph}))
        backend.run(image)
        first_s = time.perf_counter() - start
        frame = bench.frames(partial(backend.run, image))
        timed = getattr(backend, "gpu_milliseconds", None)
        gpu = _median_and_tail(timed(bench.runs, cell.batch)) if timed else (None, None)
        words = [f"first result after {first_s:.1f} s"]
        if gpu[0] is not None:
            words.append(f"copies and runner {frame - gpu[0]:.2f} ms")
        name = way if len(graphs) == 1 else f"{way}, CUDA graph {'on' if with_graph else 'off'}"
        yield Row(str(cell), name, gpu[0], gpu[1], frame, least, ", ".join(words))
        backend.close()


def _median_and_tail(times: list[float]) -> tuple[float, float]:
    return float(np.median(times)), percentile(times, 0.99).value


def least_times(bench: Bench, cell: Cell, model: M2H, folder: Path) -> dict[str, float]:
    """Return the milliseconds of both forms on the roofline, in half precision."""
    least = {}
    for form in ("reference", "deploy"):
        path = export_onnx(model, folder / "cost.onnx", height=cell.height, width=cell.width, form=form).path  # type: ignore[arg-type]
        costs = node_costs(onnx.load(path))
        macs, nbytes = sum(node.macs or 0 for node in costs), sum(node.nbytes or 0 for node in costs)
        least[form] = bench.roof.least_ms(cell.batch * macs, cell.batch * nbytes // 2)
    return least


def table(rows: list[Row]) -> str:
    """Format the rows as Markdown."""
    lines = ["| network | way | GPU ms | p99 | frame ms | roofline ms | note |", "|---|---|---:|---:|---:|---:|---|"]
    for row in rows:
        figures = (row.gpu_ms, row.gpu_p99_ms, row.frame_ms, row.roofline_ms)
        cells = [row.cell, row.way, *("" if value is None else f"{value:.3f}" for value in figures), row.note]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def about(bench: Bench) -> dict[str, Any]:
    """Return the machine, package versions and measured limits, for the record."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name() if bench.cuda else platform.processor() or platform.machine()
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if bench.cuda else None
    roof = {"matrix_tflops": bench.roof.matrix_tflops, "copy_gbs": bench.roof.copy_gbs}
    return {"device": name, "capability": capability, "packages": found, "date": time.strftime("%Y-%m-%d"), **roof}


def measure(bench: Bench, cell: Cell) -> Iterator[Row]:
    """Measure all rows of one cell."""
    torch.manual_seed(0)
    model = build_model(cell.variant).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory(prefix="m2h-gpu-") as folder:
        least = least_times(bench, cell, model, Path(folder))
        yield from torch_rows(bench, cell, model, least)
        yield from engine_rows(bench, cell, model, Path(folder), least)


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cells", default=CELLS, help="comma separated (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--no-parity", action="store_true", help="leave out the golden parity of PyTorch")
    parser.add_argument("--json", type=Path, help="write the figures to this file too, after every cell")
    options = parser.parse_args()
    console = Console(stderr=True)
    try:
        cells = [Cell.parse(text) for text in options.cells.split(",")]
        bench = Bench(options.device, options.runs)
    except M2HError as error:
        console.print(str(error), style="red", markup=False)
        return error.exit_code
    facts = about(bench)
    rows: list[Row] = []
    print(json.dumps(facts), flush=True)
    if not options.no_parity:
        rows += parity_rows(bench, Path(__file__).parents[1] / "tests" / "golden")
    for cell in cells:
        with console.status(f"measuring {cell}"):
            rows += measure(bench, cell)
        if options.json:
            values = {"about": facts, "rows": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(values, indent=2) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
