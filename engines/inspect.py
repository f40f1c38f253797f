"""What an ONNX file or a bundle is, in figures."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from engines.graph import default_opset, load_graph
from m2h_deploy.bundle import load_bundle


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A bundle's manifest or an ONNX file's contents as plain values. Raises M2HError when it is neither."""
    path = Path(path)
    return _bundle(path) if path.is_dir() else _onnx(path)


def _bundle(path: Path) -> dict[str, Any]:
    bundle = load_bundle(path)
    manifest = bundle.manifest.model_dump(mode="json")
    sizes = {name: (path / name).stat().st_size for name in bundle.manifest.files}
    return {"kind": "bundle", "path": str(path), "bytes": sum(sizes.values()), "manifest": manifest}


def _onnx(path: Path) -> dict[str, Any]:
    proto = load_graph(path)
    return {
        "kind": "onnx",
        "path": str(path),
        "bytes": path.stat().st_size,
        "opset": default_opset(proto),
        "inputs": {value.name: _dims(value) for value in proto.graph.input},
        "outputs": {value.name: _dims(value) for value in proto.graph.output},
        "parameters": sum(math.prod(tensor.dims) for tensor in proto.graph.initializer),
        "nodes": dict(Counter(_operator(node) for node in proto.graph.node).most_common()),
        "functions": [f"{function.domain}::{function.name}" for function in proto.functions],
        "metadata": {entry.key: entry.value for entry in proto.metadata_props},
    }


def _dims(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type
