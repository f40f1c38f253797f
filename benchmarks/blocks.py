"""Time by the paper's block on ONNX Runtime, plain graph against deploy form.

    python benchmarks/blocks.py --variants m2h-small --threads 2 --json blocks.json

Both graphs are profiled in turns in one process. An operator belongs to the block that its output is named after;
layout changes that the runtime inserts belong to the block whose map they change. Weights are random: time does
not depend on them. Prints a Markdown table of milliseconds per frame, medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console

from export import export_onnx
from m2h_deploy.model import build_model

BLOCKS = (
    "backbone",
    "mstr",
    "msf",
    "wmca",
    "context",
    "heads.depth",
    "heads.semantics",
    "heads.normals",
    "heads.edges",
)
FORMS = ("reference", "deploy")

Times = dict[str, dict[str, float]]


def block_of(name: str) -> str | None:
    """The block in a name such as `/heads.depth/aspp/Conv`, None where there is none."""
    found = re.match(r"/?(backbone|mstr|msf|wmca|context|heads\.\w+)", name)
    return found[1] if found else None


def blocks_by_node(optimised: onnx.ModelProto) -> dict[str, str]:
    """Block of every node of a graph, from its outputs' names, else from where its input comes from."""
    blocks: dict[str, str] = {}
    produced: dict[str, str] = {}
    for node in optimised.graph.node:
        named = [block_of(name) for name in (*node.output, node.name)]
        inherited = [produced.get(name) for name in node.input]
        block = next((b for b in (*named, *inherited) if b), "outside")
        blocks[node.name] = block
        produced.update(dict.fromkeys(node.output, block))
    return blocks


class Profiled:
    """An ONNX Runtime session whose runs are recorded node by node."""

    def __init__(self, path: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = str(path.with_suffix(""))
        options.optimized_model_filepath = str(path.with_suffix(".optimised.onnx"))
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.blocks = blocks_by_node(onnx.load(options.optimized_model_filepath, load_external_data=False))
        self.input = np.zeros(self.session.get_inputs()[0].shape, np.float32)

    def run(self) -> None:
        self.session.run(None, {"image": self.input})

    def milliseconds(self, warm_up: int) -> dict[str, float]:
        """Median over the runs after the first `warm_up`, by block, with `total` and the number of `nodes`."""
        profile = Path(self.session.end_profiling())
        events = json.loads(profile.read_text())
        runs: list[dict[str, float]] = []
        suffix = "_kernel_time"
        for event in sorted(events, key=lambda e: e.get("ts", 0)):
            if event.get("name") == "model_run":
                runs.append(defaultdict(float))
            elif runs and event.get("cat") == "Node" and event["name"].endswith(suffix):
                runs[-1][self.blocks.get(event["name"].removesuffix(suffix), "outside")] += event["dur"] / 1e3
        runs = runs[warm_up:]
        times = {block: statistics.median(run.get(block, 0.0) for run in runs) for block in (*BLOCKS, "outside")}
        times["total"] = statistics.median(sum(run.values()) for run in runs)
        times["nodes"] = len(self.blocks)
        return times


def measure(variant: str, side: int, threads: int, runs: int, folder: Path) -> Times:
    """Milliseconds by form and block."""
    model = build_model(variant).eval()
    sessions = {}
    for form in FORMS:
        path = export_onnx(model, folder / f"{variant}-{form}.onnx", height=side, width=side, form=form)
        sessions[form] = Profiled(path, threads)
    for _ in range(runs + 1):
        for session in sessions.values():
            session.run()
    return {form: session.milliseconds(warm_up=1) for form, session in sessions.items()}


def table(variant: str, times: Times) -> str:
    """Markdown: a row a block."""
    plain, deploy = times["reference"], times["deploy"]
    lines = [f"| {variant} | plain ms | deploy ms | ratio |", "|---|---:|---:|---:|"]
    for block in (*BLOCKS, "outside", "total"):
        ratio = f"{plain[block] / deploy[block]:.2f}" if deploy[block] else "-"
        lines.append(f"| {block} | {plain[block]:.1f} | {deploy[block]:.1f} | {ratio} |")
    lines.append(f"| nodes after optimisation | {plain['nodes']:.0f} | {deploy['nodes']:.0f} | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="m2h-small", help="comma separated (default: %(default)s)")
    parser.add_argument("--side", type=int, default=224, help="image height and width (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    console = Console(stderr=True)
    results: dict[str, Times] = {}
    for variant in options.variants.split(","):
        with tempfile.TemporaryDirectory() as folder, console.status(f"measuring {variant}"):
            results[variant] = measure(variant, options.side, options.threads, options.runs, Path(folder))
        print(table(variant, results[variant]) + "\n")
    if options.json:
        about = {"onnxruntime": ort.__version__, "machine": platform.machine(), **vars(options), "json": None}
        options.json.write_text(json.dumps({"about": about, "milliseconds": results}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
