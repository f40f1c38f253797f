"""Reading the ONNX files that engines are built from."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from m2h_deploy.bundle.consistency import MAX_CLASSES
from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.errors import M2HError
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.runtime.preprocess import Normalization

#: Metadata of a graph that was lowered here: its precision, and what a bundle says of it (see `engines.lowered`).
PRECISION, LOWERED = "m2h.precision", "m2h.lowered"


@dataclass(frozen=True)
class SensorCard:
    """What a sensor graph says about its camera and the network inside of it; sizes are width and height."""

    format: Literal["uint8", "nv12"]
    camera: tuple[int, int]
    network: tuple[int, int]


@dataclass(frozen=True)
class ModelCard:
    """What an exported file says about itself (the `m2h.` entries of its metadata)."""

    variant: str
    config: dict
    weights_sha256: str
    tasks: tuple[str, ...]
    normalization: Normalization
    """Normalization of the input images."""
    classes: Classes
    form: str
    windows: str
    sensor: SensorCard | None = None
    """Only of a sensor graph."""


def load_graph(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The ONNX file at `path` with all of its weights. Raises M2HError when it is missing, truncated or not ONNX."""
    return read_onnx(path)


def metadata_of(proto: onnx.ModelProto) -> dict[str, str]:
    """The entries of the file's metadata."""
    return {entry.key: entry.value for entry in proto.metadata_props}


def set_metadata(proto: onnx.ModelProto, key: str, value: str | None) -> None:
    """Write one entry of the file's metadata in place of an older one, or remove it."""
    kept = [entry for entry in proto.metadata_props if entry.key != key]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    if value is not None:
        proto.metadata_props.add(key=key, value=value)


def read_card(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> ModelCard:
    """The model card of an exported graph. Raises M2HError when the file was not made by m2h-deploy export."""
    entries = metadata_of(proto)
    try:
        card = ModelCard(
            variant=entries["m2h.variant"],
            config=json.loads(entries["m2h.config"]),
            weights_sha256=entries["m2h.weights_sha256"],
            tasks=tuple(entries["m2h.tasks"].split(",")),
            normalization=Normalization.from_json(entries["m2h.normalization"]),
            classes=Classes.model_validate_json(entries["m2h.classes"]),
            form=entries["m2h.form"],
            windows=entries["m2h.windows"],
            sensor=_sensor_card(entries.get("m2h.sensor")),
        )
    except KeyError as error:
        raise M2HError(
            f"{path} was not made by this version of m2h-deploy export (its metadata lacks {error}): export it again"
        ) from None
    except (ValueError, TypeError, RecursionError, M2HError) as error:
        words = " ".join(str(error).split())
        raise M2HError(f"{path}: its metadata is damaged ({words[:200]}): export it again") from None
    problem = _wrong_card(card)
    if problem is not None:
        raise M2HError(f"{path}: its metadata is damaged ({problem}): export it again")
    return card


def _wrong_card(card: ModelCard) -> str | None:
    """The first entry that nothing can be built from; None where all are well."""
    if not isinstance(card.config, dict):
        return "m2h.config is not an object"
    low, high, classes = (card.config.get(name) for name in ("min_depth", "max_depth", "num_classes"))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not 0 <= low < high < math.inf:
        return f"m2h.config has the depth range {low!r} to {high!r}"
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= MAX_CLASSES:
        return f"m2h.config has {classes!r} classes, expected 1 to {MAX_CLASSES}"
    if len(card.classes.names) != classes:
        return f"m2h.classes names {len(card.classes.names)} classes, m2h.config has {classes}"
    if re.fullmatch(r"[0-9a-f]{64}", card.weights_sha256) is None:
        return "m2h.weights_sha256 is not a sha256"
    sensor = card.sensor
    if sensor is not None and not all(_is_size(size) for size in (sensor.camera, sensor.network)):
        return "m2h.sensor has no sizes"
    return None


def _is_size(size: tuple[int, ...]) -> bool:
    return len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)


def _sensor_card(text: str | None) -> SensorCard | None:
    if text is None:
        return None
    facts = json.loads(text)
    if not isinstance(facts, dict) or not {"format", "camera", "network"} <= facts.keys():
        raise ValueError("m2h.sensor lacks format, camera or network")
    return SensorCard(facts["format"], tuple(facts["camera"]), tuple(facts["network"]))


def default_opset(proto: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return next((opset.version for opset in proto.opset_import if opset.domain == ""), 0)


#: Operators of quantized graphs: Q/DQ, and those that compute in integers.
_INT8_OPERATORS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)

_HALF = onnx.TensorProto.FLOAT16
#: Types that a graph may compute in beside `_HALF`. Whole numbers are indices, shapes, pixels and labels.
_PLAIN = frozenset(
    onnx.TensorProto.DataType.Value(name)
    for name in (
        "UNDEFINED", "FLOAT", "DOUBLE", "BOOL", "STRING",
        "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
    )
)  # fmt: skip


def graph_precision(proto: onnx.ModelProto, path: str | os.PathLike[str] = "the graph") -> str:
    """`int8`, `fp16` or `fp32`: the precision that a strongly typed graph has, whatever its metadata says.

    Q/DQ makes it int8; a weight, constant, cast, input or output of float16 makes it fp16. Raises M2HError on types
    that no bundle has, such as bfloat16 or float8.
    """
    types = set(_element_types(proto))
    if others := sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in types - _PLAIN - {_HALF}):
        raise M2HError(f"{path} holds {', '.join(others)}: engines are built from fp32, fp16 or int8 graphs")
    if any(node.op_type in _INT8_OPERATORS for node in _all_nodes(proto)):
        return "int8"
    return "fp16" if _HALF in types else "fp32"


def read_precision(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> str:
    """The precision of a graph, as `graph_precision`. Raises M2HError where its metadata says another one."""
    found, said = graph_precision(proto, path), metadata_of(proto).get(PRECISION)
    if said is not None and said != found:
        raise M2HError(
            f"{path} is {found} by its nodes and weights, and its metadata says {said}: another tool has changed it; "
            "convert the float32 file of m2h-deploy export again"
        )
    return found


def _element_types(proto: onnx.ModelProto) -> Iterator[int]:
    """Types of all inputs, outputs, weights, constants and casts."""
    for value in (*proto.graph.input, *proto.graph.output):
        yield value.type.tensor_type.elem_type
    for tensor in proto.graph.initializer:
        yield tensor.data_type
    for node in _all_nodes(proto):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t.data_type
            elif node.op_type == "Cast" and attribute.name == "to":
                yield attribute.i
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from (tensor.data_type for tensor in attribute.g.initializer)


def _all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of the graph, of its functions, and of the branches and loops inside of them."""
    waiting = [*proto.graph.node, *(node for function in proto.functions for node in function.node)]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [inner for attribute in node.attribute for inner in attribute.g.node]
