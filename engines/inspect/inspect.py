"""Describe an ONNX file or a bundle in figures, alone or compared with another one."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from m2h_deploy.backends.driver import missing_gpu
from m2h_deploy.backends.tensorrt_api import NAMES, load_tensorrt, start
from m2h_deploy.backends.tensorrt_log import listen
from m2h_deploy.bundle.describe import depth_words, describe_bundle, label_facts
from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.onnx_graph.files import external_files, read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.onnx_graph.info import VARIANT, metadata_of
from m2h_deploy.onnx_graph.precision import default_opset, graph_precision
from m2h_deploy.profiling.costs import NodeCost, node_costs, operator, precision_of, total, uncounted

#: Precisions in the order of the tables.
PRECISIONS = ("float32", "float16", "int8", "fp8")


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a bundle or an ONNX file as JSON-compatible values.

    For an ONNX file: `inputs`, `outputs`, `dynamic` (dynamic sides by input and output), `precision`, `opset`,
    `metadata`, `functions`, `nodes` (count by operator), `nodes_inlined` (the same with calls replaced by the
    functions' bodies), `parameters`, `macs` and `bytes_moved` per frame (see `m2h_deploy.profiling.costs`), `blocks`
    (the same by block of the paper, with the share of nodes and weights by precision), and `uncounted` (operators whose
    shapes are unknown).

    For a bundle: `manifest`, `sizes` of its files, and `engine`: the figures above if the engine is an ONNX file, and
    otherwise the engine's own `layers`, or a `note` that says why they could not be read.

    Raises:
        M2HError: `path` is neither a bundle nor an ONNX file.
    """
    path = Path(path)
    return _bundle(path) if path.is_dir() else _onnx(path)


def _bundle(path: Path) -> dict[str, Any]:
    return describe_bundle(path) | {"engine": _engine(load_bundle(path))}


def _engine(bundle: Bundle) -> dict[str, Any]:
    kind, form = bundle.manifest.engine.kind, bundle.engine_file.suffix
    try:
        if form == ".onnx":
            return _onnx(bundle.engine_file)
        if form == ".plan":
            return {"kind": "plan", "layers": _plan_layers(bundle)}
        if form == ".xml":
            return {"kind": "ir", **_ir_layers(bundle)}
    except (M2HError, ModuleNotFoundError) as error:
        return {"kind": kind, "note": f"layers not read: {error}"}
    return {"kind": kind, "note": f"layers not read: nothing here reads an engine of kind {kind}"}


def _onnx(path: Path) -> dict[str, Any]:
    proto = read_onnx(path)
    costs = node_costs(proto)
    inlined, _ = inline_functions(proto)
    inputs = {value.name: _dims(value) for value in proto.graph.input}
    outputs = {value.name: _dims(value) for value in proto.graph.output}
    free = {name: [d for d in dims if isinstance(d, str)] for name, dims in (inputs | outputs).items()}
    return {
        "kind": "onnx",
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in (path, *external_files(path))),
        "precision": _precision(proto),
        "opset": default_opset(proto),
        "inputs": inputs,
        "outputs": outputs,
        "dynamic": {name: sides for name, sides in free.items() if sides},
        "parameters": sum(_weights(costs).values()),
        "weights": _weights(costs),
        "macs": total(cost.macs for cost in costs),
        "bytes_moved": total(cost.nbytes for cost in costs),
        "blocks": _blocks(costs),
        "uncounted": uncounted(costs),
        "nodes": _count(proto.graph.node),
        "nodes_inlined": _count(inlined.graph.node),
        "functions": [f"{function.domain}::{function.name}" for function in proto.functions],
        "metadata": metadata_of(proto),
    }


def _precision(proto: onnx.ModelProto) -> str | None:
    """Return fp32, fp16, int8 or fp8; None for a graph of other types."""
    try:
        return graph_precision(proto)
    except M2HError:
        return None


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim
    ]


def _count(nodes: Iterable[onnx.NodeProto]) -> dict[str, int]:
    return dict(Counter(operator(node) for node in nodes).most_common())


def _weights(costs: Sequence[NodeCost]) -> dict[str, int]:
    """Count the constants' elements by precision, without index arithmetic and the scales of quantization."""
    counts = dict.fromkeys(PRECISIONS, 0)
    for cost in costs:
        quantization = cost.operator in ("QuantizeLinear", "DequantizeLinear")
        for tensor in cost.weights:
            precision = precision_of(tensor.dtype)
            if precision in counts and not (quantization and (precision not in ("int8", "fp8") or tensor.size == 1)):
                counts[precision] += tensor.size
    return counts


def _blocks(costs: Sequence[NodeCost]) -> list[dict[str, Any]]:
    """Return figures by block of the paper, in the order of the forward pass."""
    rows = []
    for block in dict.fromkeys(cost.block for cost in costs):
        mine = [cost for cost in costs if cost.block == block]
        computing = Counter(cost.precision for cost in mine if cost.precision in PRECISIONS)
        weights = _weights(mine)
        rows.append(
            {
                "block": block,
                "nodes": len(mine),
                "parameters": sum(weights.values()),
                "macs": total(cost.macs for cost in mine),
                "bytes_moved": total(cost.nbytes for cost in mine),
                "node_share": _shares(computing),
                "weight_share": _shares(weights),
            }
        )
    return rows


def _shares(counts: dict[str, int] | Counter[Any]) -> dict[str, float]:
    everything = sum(counts.values())
    return {name: counts[name] / everything if everything else 0.0 for name in PRECISIONS}


def _plan_layers(bundle: Bundle) -> list[str]:
    """Read the names of a plan's layers with TensorRT's engine inspector. Raises M2HError without a GPU."""
    kind = bundle.manifest.engine.kind
    trt = load_tensorrt(kind)
    if (missing := missing_gpu(bindings=False)) is not None:
        raise M2HError(f"TensorRT's engine inspector needs an NVIDIA GPU ({missing})")
    logger, messages = listen(kind)
    runtime = start(trt.Runtime, f"{NAMES[kind]} {trt.__version__}", logger, messages)
    engine = runtime.deserialize_cuda_engine(bundle.engine_file.read_bytes())
    if engine is None:
        raise M2HError(f"TensorRT refuses the plan {bundle.engine_file}: build it again on this machine")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    # A plan built with detailed profiling gives a record per layer, others give only a name.
    return [layer["Name"] if isinstance(layer, dict) else str(layer) for layer in layers]


def _ir_layers(bundle: Bundle) -> dict[str, Any]:
    """Count the operations of an OpenVINO IR by type. Raises M2HError if OpenVINO is missing or rejects the file."""
    try:
        from m2h_deploy.backends.openvino import read_ir
    except ImportError as error:
        raise missing_extra("openvino", "openvino", "reading its operations", error=error) from None
    kinds = [operation.get_type_name() for operation in read_ir(bundle).get_ordered_ops()]
    counts = Counter(kind for kind in kinds if kind != "Constant")
    return {
        "layers": dict(counts.most_common()),
        "precision": bundle.manifest.engine.options.get("inference_precision"),
    }


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """Flatten a report of `inspect` to one row of the figures that two reports can be compared by."""
    graph = report if report["kind"] == "onnx" else report["engine"]
    rows: dict[str, Any] = {"kind": report["kind"], "bytes": report["bytes"]}
    if report["kind"] == "bundle":
        manifest = report["manifest"]
        engine, size = manifest["engine"], manifest["input"]
        rows |= {
            "variant": manifest["model"]["variant"],
            "engine": f"{engine['kind']} {engine['version']}",
            "precision": engine["precision"],
            "input": _input_words(size),
            "depth": depth_words(manifest),
            **label_facts(manifest),
        }
    else:
        rows["variant"] = report["metadata"].get(VARIANT)
        rows["precision"] = report["precision"]
        rows["input"] = ", ".join(" x ".join(map(str, dims)) for dims in report["inputs"].values())
    if graph["kind"] == "onnx":
        rows |= {key: graph[key] for key in ("opset", "parameters", "macs", "bytes_moved")}
        rows |= {f"{name} weights": count for name, count in graph["weights"].items()}
        rows["nodes"] = sum(graph["nodes_inlined"].values())
        rows |= {f"{row['block']} macs": row["macs"] for row in graph["blocks"] if row["macs"]}
        rows |= {f"{row['block']} bytes_moved": row["bytes_moved"] for row in graph["blocks"] if row["macs"]}
    elif "layers" in graph:
        layers = graph["layers"]
        rows["layers"] = sum(layers.values()) if isinstance(layers, dict) else len(layers)
    return rows


def _input_words(size: dict[str, Any]) -> str:
    batch, height, width = size["batch"] or "N", size["height"], size["width"]
    if size["layout"] == "NV12":
        return f"{batch} x {height * 3 // 2} x {width} uint8 (NV12)"
    if size["layout"] == "NHWC":
        return f"{batch} x {height} x {width} x 3 uint8 (BGR)"
    return f"{batch} x 3 x {height} x {width}"


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare two reports of `inspect`.

    Returns:
        Rows with `figure`, `a`, `b` (None in a report without that figure) and `ratio`, b / a.
    """
    left, right = figures(a), figures(b)
    rows = []
    for figure in dict.fromkeys((*left, *right)):
        one, other = left.get(figure), right.get(figure)
        numbers = isinstance(one, int) and isinstance(other, int) and one
        rows.append({"figure": figure, "a": one, "b": other, "ratio": other / one if numbers else None})  # type: ignore[operator]
    return rows


def render(report: dict[str, Any]) -> list[RenderableType]:
    """Render a report of `inspect` for a terminal: its figures, then its graph block by block."""
    facts = Table(show_header=False, box=None)
    facts.add_row("path", Text(report["path"]))
    for figure, value in figures(report).items():
        if not figure.endswith((" macs", " bytes_moved")):
            facts.add_row(figure.replace("_", " "), Text(_words(figure, value)))
    graph = report if report["kind"] == "onnx" else report["engine"]
    if "note" in graph:
        facts.add_row("note", Text(graph["note"]))
    if graph["kind"] != "onnx":
        return [facts, *([_layer_table(graph["layers"])] if "layers" in graph else [])]
    for name, dims in graph["outputs"].items():
        facts.add_row(f"output {name}", Text(" x ".join(map(str, dims))))
    for key in ("dynamic", "functions", "uncounted"):
        if graph[key]:
            facts.add_row(key, Text(str(graph[key])))
    return [facts, _block_table(graph), _layer_table(graph["nodes_inlined"])]


def render_comparison(rows: Sequence[dict[str, Any]], a: str, b: str) -> list[RenderableType]:
    """Render the rows of `compare` for a terminal, under the names `a` and `b`.

    If only one of the two has an ONNX graph, the figures of that graph are left out.
    """
    table = Table("", escape(a), escape(b), "b / a", box=None)
    opsets = [row for row in rows if row["figure"] == "opset"]  # every ONNX graph has one
    without = [name for side, name in (("a", a), ("b", b)) if all(row[side] is None for row in opsets)]
    graphs = len(without) != 1
    for row in rows:
        if not graphs and None in (row["a"], row["b"]):
            continue
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        style = None if row["a"] == row["b"] else "bold"
        words = (Text(_words(row["figure"], row[side])) for side in ("a", "b"))
        table.add_row(row["figure"].replace("_", " "), *words, ratio, style=style)
    if graphs:
        return [table]
    return [table, Text(f"{without[0]} has no ONNX graph: operators, weights, MACs and bytes are not compared")]


def _block_table(graph: dict[str, Any]) -> Table:
    table = Table("block", box=None)
    for title in ("nodes", "parameters", "MACs", "moved", *(f"{name} nodes / weights" for name in PRECISIONS)):
        table.add_column(title, justify="right")
    for row in graph["blocks"]:
        shares = (f"{row['node_share'][p]:.0%} / {row['weight_share'][p]:.0%}" for p in PRECISIONS)
        numbers = (_words(key, row[key]) for key in ("parameters", "macs", "bytes_moved"))
        table.add_row(Text(row["block"]), str(row["nodes"]), *numbers, *shares)
    return table


def _layer_table(layers: dict[str, int] | list[str]) -> Table:
    if isinstance(layers, list):
        table = Table("layer", box=None)
        for layer in layers:
            table.add_row(Text(layer))
        return table
    table = Table("operator", "nodes", box=None)
    for name, count in layers.items():
        table.add_row(Text(name), str(count))
    return table


def _words(figure: str, value: Any) -> str:
    """Format a figure with its unit: 26.3 GMAC, 118.0 MB, 29.0 M."""
    if value is None:
        return "-"
    if not isinstance(value, int) or figure in ("opset", "nodes", "layers"):
        return str(value)
    if figure.endswith("macs"):
        return f"{value / 1e9:.3g} GMAC" if value >= 1e8 else f"{value / 1e6:.3g} MMAC"
    if figure.startswith("bytes") or figure.endswith("bytes_moved"):
        return f"{value / 1e6:,.1f} MB"
    return f"{value / 1e6:,.2f} M" if math.fabs(value) >= 1e5 else f"{value:,}"
