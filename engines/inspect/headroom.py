"""Report how far each tensor of a float32 network is from the limits of FP16 and FP8 (E4M3)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from engines.precision.calibration import CalibrationFrames, select_frames
from engines.precision.frames import calibration_frames, open_pictures
from engines.precision.headroom import (
    E4M3_MAX,
    E4M3_NORMAL,
    E4M3_RANGE_BITS,
    MOVES,
    Range,
    activation_ranges,
    weight_ranges,
)
from engines.precision.islands import FP16_MAX, FP16_NORMAL, islands_and_risks
from engines.precision.raw_pixels import take_network
from m2h_deploy.blocks import block_of, blocks_in
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import check_interface, dims_of
from m2h_deploy.onnx_graph.precision import read_precision

#: Number of frames to measure on by default.
FRAMES = 8

#: Tensors in each of the tables for a terminal.
SHOWN = 8

#: Reasons of islands that the measurement finds; the others apply to a graph whatever its ranges.
MEASURED = ("range", "sum", "weights")


def examine_headroom(
    path: str | os.PathLike[str], source: str, *, frames: int = FRAMES, seed: int = 0
) -> dict[str, Any]:
    """Measure the float32 ONNX file at `path` on frames of `source`, a folder, a video or a data set.

    Of a sensor graph, the network inside is measured.

    Returns:
        JSON-compatible values: `limits` of both types; `tensors`, the nearest to FP16's largest number first;
        `blocks`, in the order of the forward pass, each with its worst tensor; and `islands`, the nodes that a
        conversion to FP16 on these frames would keep in float32, with the reasons. Distances are in bits (powers of
        two).

    Raises:
        M2HError: `path` is not a float32 graph of m2h-deploy, `source` has too few frames, or a tensor contains NaN or
            infinity.
    """
    path = Path(path)
    network, info = _read_network(path)
    height, width = dims_of(network.graph.input[0])[2:]
    pictures = open_pictures(source, frames)
    images = calibration_frames(pictures, info.normalization, height=height, width=width)
    chosen = select_frames(images, count=frames, held_out=0, seed=seed, source=pictures.source)
    return {"kind": "headroom", "path": str(path), "data": source} | _report(network, chosen)


def _read_network(path: Path) -> tuple[onnx.ModelProto, GraphInfo]:
    """Return the network of a float32 graph, without functions, and the graph's metadata."""
    if path.is_dir():
        raise M2HError(f"{path} is a folder: headroom is measured on the ONNX file that m2h-deploy export wrote")
    proto = read_onnx(path)
    precision = read_precision(proto, path)
    if precision != "fp32":
        raise M2HError(
            f"{path} is {precision} already: headroom is measured on the float32 file that m2h-deploy export wrote"
        )
    info = GraphInfo.read(proto, path)
    check_interface(proto, info, path)
    network, _ = inline_functions(take_network(proto) if info.sensor is not None else proto)
    return network, info


def _report(network: onnx.ModelProto, frames: CalibrationFrames) -> dict[str, Any]:
    weights = weight_ranges(network)  # first: an error names the weight, and not a result of it
    activations = activation_ranges(network, frames.frames)
    islands, _ = islands_and_risks(network, {name: values.largest for name, values in activations.items()})
    kept = [{"node": found.node, "block": block_of(found.node), "reason": found.reason} for found in islands]
    tensors = sorted(_tensor_rows(network, activations, weights), key=lambda row: -row["largest"])
    return {
        "frames": len(frames.frames),
        "seed": frames.seed,
        "frames_sha256": frames.sha256,
        "limits": {
            "fp16": {"largest": FP16_MAX, "smallest_normal": FP16_NORMAL},
            "e4m3": {"largest": E4M3_MAX, "smallest_normal": E4M3_NORMAL, "range_bits": E4M3_RANGE_BITS},
        },
        "blocks": [_block_row(block, tensors, kept) for block in blocks_in(network)],
        "tensors": tensors,
        "islands": kept,
    }


def _tensor_rows(
    network: onnx.ModelProto, activations: Mapping[str, Range], weights: Mapping[str, Range]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each tensor, in graph order.

    Its node is the one that makes it, or the first one that uses the input or a weight.
    """
    waiting = {value.name: "input" for value in network.graph.input} | dict.fromkeys(weights, "weight")
    for node in network.graph.node:
        for name in node.input:
            kind = waiting.pop(name, None)
            if kind is not None:
                yield _tensor_row(name, kind, node.name, weights[name] if kind == "weight" else activations[name])
        if node.op_type in MOVES and node.input[0] in activations:
            continue  # the same values under another name
        for name in node.output:
            if name in activations:
                yield _tensor_row(name, "activation", node.name, activations[name])


def _tensor_row(name: str, kind: str, node: str, values: Range) -> dict[str, Any]:
    return {
        "tensor": name,
        "kind": kind,
        "node": node,
        "block": block_of(node),
        "largest": values.largest,
        "smallest": values.smallest,
        "fp16_overflow_bits": values.overflow_bits,
        "fp16_underflow_bits": values.underflow_bits,
        "fp16_subnormal_share": values.fp16_subnormal,
        "e4m3_range_bits": values.dynamic_range_bits,
        "e4m3_subnormal_share": values.e4m3_subnormal,
    }


def _block_row(block: str, tensors: Sequence[dict[str, Any]], islands: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the worst figures of a block: of its tensors, `tensors` has the largest first."""
    mine = [row for row in tensors if row["block"] == block]
    worst = mine[0] if mine else {}
    nonzero = [row for row in mine if row["smallest"]]
    return {
        "block": block,
        "tensor": worst.get("tensor"),
        "largest": worst.get("largest"),
        "fp16_overflow_bits": worst.get("fp16_overflow_bits"),
        "smallest": min((row["smallest"] for row in nonzero), default=None),
        "fp16_subnormal_share": max((row["fp16_subnormal_share"] for row in mine), default=None),
        "e4m3_range_bits": max((row["e4m3_range_bits"] for row in nonzero), default=None),
        "e4m3_subnormal_share": max((row["e4m3_subnormal_share"] for row in mine), default=None),
        "islands": sum(row["block"] == block for row in islands),
    }


#: Columns that the tables of blocks and tensors share, with their titles.
_COLUMNS = {
    "largest": "largest",
    "fp16_overflow_bits": "bits to 65,504",
    "smallest": "smallest",
    "fp16_subnormal_share": "below FP16",
    "e4m3_range_bits": "bits of range",
    "e4m3_subnormal_share": "below E4M3",
}

_NOTE = (
    "smallest: the smallest magnitude that is not zero. below: the share of values that are not zero and smaller than "
    "the type's smallest normal number, where it loses bits. E4M3 is taken with a scale for each tensor, which maps "
    f"the largest magnitude to {E4M3_MAX:g}: what counts is the range, and E4M3 has {E4M3_RANGE_BITS:.1f} bits of it "
    "above its smallest normal number. For a block, each column has its worst tensor."
)


def render_headroom(report: dict[str, Any]) -> list[RenderableType]:
    """Render a report of `examine_headroom` for a terminal: its blocks, its worst tensors and its islands.

    Tensors are listed by the share of values that a type cannot represent well, not by their smallest value: among many
    values, one is near zero by chance.
    """
    facts = f"{report['path']}: {len(report['tensors'])} tensors on {report['frames']} frames of {report['data']}"
    blocks = _table(["block", "worst tensor"], ["islands"])
    for row in report["blocks"]:
        name = (row["tensor"] or "-").removeprefix(f"/{row['block']}/")
        blocks.add_row(Text(row["block"]), Text(name), *_cells(row), str(row["islands"]))
    parts: list[RenderableType] = [Text(facts), blocks, Text(_NOTE, style="dim")]
    orders = {
        "nearest to FP16's largest number": "largest",
        "most values below FP16's smallest normal number": "fp16_subnormal_share",
        "most values below E4M3's smallest normal number": "e4m3_subnormal_share",
    }
    for title, figure in orders.items():
        table = _table([title], [])
        for row in sorted(report["tensors"], key=lambda row: -row[figure])[:SHOWN]:
            table.add_row(Text(row["tensor"]), *_cells(row))
        parts += [Text(""), table]
    return [*parts, Text(""), *_island_parts(report["islands"])]


def _table(first: Sequence[str], last: Sequence[str]) -> Table:
    table = Table(*(Column(title, no_wrap=True) for title in first), box=None)
    for title in (*_COLUMNS.values(), *last):
        table.add_column(title, justify="right")
    return table


def _cells(row: Mapping[str, Any]) -> Iterator[str]:
    for figure in _COLUMNS:
        value = row[figure]
        form = ".1%" if figure.endswith("share") else ".1f" if figure.endswith("bits") else ".3g"
        yield "-" if value is None else format(value, form)


def _island_parts(islands: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Return the nodes that the measurement keeps in float32 as a table, and the count of those kept by rule."""
    found = [row for row in islands if row["reason"] in MEASURED]
    by_rule = Counter(row["reason"] for row in islands if row["reason"] not in MEASURED)
    words = ", ".join(f"{count} {reason}" for reason, count in by_rule.items())
    notes = [Text(f"float32 whatever their range: {words} (--json lists them)")] if words else []
    if not found:
        return [Text("no range and no weight needs another node in float32", style="green"), *notes]
    table = Table("node to keep in float32", "reason", box=None)
    for row in found:
        table.add_row(Text(row["node"]), row["reason"])
    return [table, *notes]
