"""The deploy form against its peers: PyTorch eager, torch.compile, and a plain export, on every CPU engine installed.

    python benchmarks/peers.py --variants m2h-tiny,m2h-small --threads 2 --runs 10 --json peers.json

All peers of a variant run in turns in one process, so that other load on the machine affects all of them; reported are
medians with the smallest and largest run, and the ratio to the plain export on the same engine. CPU ms is the
processor time of all threads, which is steadier than wall time on a shared machine. The roofline is a float32 matrix
product measured in the same turns: GFLOP/s counts two operations per multiply-add of the graph. It bounds float32
only: bf16 and INT8 on a CPU's matrix units exceed it, which is shown as `> 100%`, without a figure. Weights are random:
time does not depend on them. MB is the amount that all nodes read and write. OpenVINO is measured if it is installed,
in bf16 if the CPU supports it.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from rich.console import Console

from engines.peers import write_plain
from engines.precision.calibration import Calibration, select_frames
from engines.precision.convert import to_int8
from export import export_onnx
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import first_line
from m2h_deploy.model import M2H, build_model
from m2h_deploy.profiling.costs import node_costs
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess

MATRIX = 1536


@dataclass
class Peer:
    """One way to run a network, and the times of its runs."""

    name: str
    baseline: str
    """Name of the peer that the ratio is relative to."""
    run: Callable[[], Any] = field(repr=False)
    nodes: int | None = None
    macs: int | None = None
    nbytes: int | None = None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self) -> None:
        """Run once and record wall and processor time in milliseconds."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.run()
        self.cpu.append(1e3 * (time.process_time() - cpu))
        self.wall.append(1e3 * (time.perf_counter() - wall))


@dataclass(frozen=True)
class Row:
    """Milliseconds of a peer; ratios are baseline over peer, so larger is faster."""

    variant: str
    peer: str
    median_ms: float
    min_ms: float
    max_ms: float
    cpu_ms: float
    ratio: float
    cpu_ratio: float
    nodes: int | None
    gmacs: float | None
    megabytes: float | None
    gflops: float | None
    share_of_roofline: float | None


def torch_peers(model: M2H, image: torch.Tensor) -> Iterator[Peer]:
    """Yield eager and compiled PyTorch. Compiles once here: without a C++ compiler the compiled peer is left out."""

    def runner(network: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return network(image)

        return run

    yield Peer("PyTorch eager", "PyTorch eager", runner(model))
    compiled = runner(torch.compile(model))
    try:
        compiled()
    except Exception as error:  # the backend's errors share no base type
        print(f"torch.compile left out: {first_line(error)[:120]}", file=sys.stderr)
        return
    yield Peer("torch.compile", "PyTorch eager", compiled)


def onnxruntime_peer(form: str, path: Path, image: np.ndarray, threads: int) -> Peer:
    """Open `path` in ONNX Runtime; `form` is its name in the table."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Spinning threads would count as processor time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Peer(f"ONNX Runtime, {form}", "ONNX Runtime, plain", lambda: session.run(None, {"image": image}))


def openvino_peers(paths: dict[str, Path], image: np.ndarray, threads: int) -> Iterator[Peer]:
    """Compile each of `paths`, by form, with OpenVINO in every precision that the CPU supports."""
    import openvino

    core = openvino.Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("f32", "bf16") if has_bf16 else ("f32",):
        settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}
        for form, path in paths.items():
            if "INT8" in form and precision == "bf16":
                continue  # all but INT8 is FP16 in the file; running it in f32 only keeps that separate from bf16
            request = core.compile_model(path, "CPU", settings).create_infer_request()
            name = f"OpenVINO {precision}"
            yield Peer(f"{name}, {form}", f"{name}, plain", lambda request=request: request.infer({0: image}))


def peers_of(variant: str, side: int, threads: int, engines: set[str], int8: bool, folder: Path) -> list[Peer]:
    """Make all peers of a variant, each warmed up by one run."""
    model = build_model(variant).eval().requires_grad_(False)
    image = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
    paths = {
        "plain": write_plain(model, folder / "plain.onnx", side, side),
        "deploy": export_onnx(model, folder / "deploy.onnx", height=side, width=side, form="deploy").path,
    }
    if int8:
        paths["deploy INT8"] = write_int8(paths["deploy"], folder / "int8.onnx", side)
    costs = {form: node_costs(onnx.load(path)) for form, path in paths.items()}
    peers: list[Peer] = []
    if "torch" in engines:
        peers += torch_peers(model, torch.from_numpy(image))
    if "onnxruntime" in engines:
        peers += [onnxruntime_peer(form, path, image, threads) for form, path in paths.items()]
    if "openvino" in engines:
        peers += openvino_peers(paths, image, threads)
    for peer in peers:
        form = next((form for form in paths if peer.name.endswith(f", {form}")), "plain")
        peer.macs = sum(node.macs or 0 for node in costs[form])
        if ", " in peer.name:
            peer.nodes, peer.nbytes = len(costs[form]), sum(node.nbytes or 0 for node in costs[form])
        peer.run()
    return peers


def write_int8(source: Path, target: Path, side: int) -> Path:
    """Write the deploy form in INT8, calibrated on a rendered room: time depends on neither weights nor ranges."""
    preprocess = Preprocess(PRESETS["published"], side, side)
    rooms = (preprocess(render_room(seed, 0, side, side).image) for seed in range(2))
    to_int8(source, target, calibration=Calibration(select_frames(rooms, count=1, held_out=1)))
    return target


def matrix_product() -> Peer:
    """Make the roofline: a square float32 product of PyTorch on the same number of threads."""
    left, right = torch.rand(MATRIX, MATRIX), torch.rand(MATRIX, MATRIX)
    return Peer("matrix product", "matrix product", lambda: left @ right, macs=MATRIX**3)


def gflops(peer: Peer) -> float | None:
    """Return a peer's GFLOP/s by its median wall time; None if its operations are not counted."""
    return 2e-6 * peer.macs / statistics.median(peer.wall) if peer.macs else None


def rows_of(variant: str, peers: list[Peer], roofline: Peer) -> list[Row]:
    """Make the table rows of a variant's peers and of its roofline."""
    by_name = {peer.name: peer for peer in peers}
    peak = gflops(roofline)
    rows = []
    for peer in [*peers, roofline]:
        median, cpu, rate = statistics.median(peer.wall), statistics.median(peer.cpu), gflops(peer)
        baseline = by_name.get(peer.baseline, peer)
        rows.append(
            Row(
                variant,
                peer.name,
                median,
                min(peer.wall),
                max(peer.wall),
                cpu,
                statistics.median(baseline.wall) / median,
                statistics.median(baseline.cpu) / cpu,
                peer.nodes,
                peer.macs / 1e9 if peer.macs else None,
                peer.nbytes / 1e6 if peer.nbytes else None,
                rate,
                rate / peak if rate and peak else None,
            )
        )
    return rows


def measure(variant: str, side: int, threads: int, runs: int, engines: set[str], int8: bool = False) -> list[Row]:
    """Measure all rows of one variant; its networks are freed afterwards."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        peers, roofline = peers_of(variant, side, threads, engines, int8, Path(folder)), matrix_product()
        for _ in range(runs):
            for peer in (*peers, roofline):
                peer.measure()
    rows = rows_of(variant, peers, roofline)
    del peers
    gc.collect()
    return rows


def table(rows: list[Row]) -> str:
    """Format the rows as Markdown, one row per peer."""
    lines = [
        f"| {rows[0].variant} | ms (min, max) | ratio | CPU ms | CPU ratio | nodes | GMAC | MB | GFLOP/s | of roof |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            row.peer,
            f"{row.median_ms:.1f} ({row.min_ms:.1f}, {row.max_ms:.1f})",
            f"{row.ratio:.2f}",
            f"{row.cpu_ms:.1f}",
            f"{row.cpu_ratio:.2f}",
            "" if row.nodes is None else str(row.nodes),
            "" if row.gmacs is None else f"{row.gmacs:.2f}",
            "" if row.megabytes is None else f"{row.megabytes:.0f}",
            "" if row.gflops is None else f"{row.gflops:.0f}",
            _share(row.share_of_roofline),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(share: float | None) -> str:
    """Format a share of the roofline; above 100 % the figure is omitted."""
    return "" if share is None else "> 100%" if share > 1 else f"{share:.0%}"


def environment(threads: int) -> dict[str, Any]:
    """Return versions and machine, for the record."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "onnxruntime": ort.__version__}
    if importlib.util.find_spec("openvino"):
        import openvino

        versions["openvino"] = openvino.__version__
    model = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), platform.processor()
    )
    return {"versions": versions, "cpu": model, "cores": os.cpu_count(), "threads": threads}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="m2h-tiny,m2h-small", help="comma separated (default: %(default)s)")
    parser.add_argument("--engines", default="torch,onnxruntime,openvino", help="default: %(default)s, if installed")
    parser.add_argument("--side", type=int, default=224, help="image height and width (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--int8", action="store_true", help="INT8 too; converting takes minutes")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    engines = {name for name in options.engines.split(",") if importlib.util.find_spec(name)}
    about = environment(options.threads)
    print(f"{about['cpu']}, {about['threads']} threads of {about['cores']} cores, {about['versions']}\n")
    results: list[Row] = []
    for variant in options.variants.split(","):
        with Console(stderr=True).status(f"measuring {variant}"):
            rows = measure(variant, options.side, options.threads, options.runs, engines, options.int8)
        print(table(rows) + "\n", flush=True)
        results += rows
        if options.json:
            values = {"about": about, "side": options.side, "rows": [asdict(row) for row in results]}
            options.json.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
