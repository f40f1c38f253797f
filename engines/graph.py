"""Reading the ONNX files that engines are built from."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import Literal

import onnx

from m2h_deploy.causes import failure, first_line
from m2h_deploy.consistency import MAX_CLASSES
from m2h_deploy.errors import M2HError
from m2h_deploy.preprocess import PRESETS


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
    preset: str
    form: str
    windows: str
    sensor: SensorCard | None = None
    """Only of a sensor graph."""


def load_graph(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The ONNX file at `path`. Raises M2HError when it is missing or not ONNX."""
    try:
        return onnx.load(os.fspath(path))
    except FileNotFoundError:
        raise M2HError(f"no ONNX file at {path}: make one with m2h-deploy export") from None
    except Exception as error:  # protobuf's DecodeError has no stable place to import it from
        raise failure(error, f"cannot read {path}", f"{path} is not an ONNX file: {first_line(error)}") from None


def read_card(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> ModelCard:
    """The model card of an exported graph. Raises M2HError when the file was not made by m2h-deploy export."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        card = ModelCard(
            variant=entries["m2h.variant"],
            config=json.loads(entries["m2h.config"]),
            weights_sha256=entries["m2h.weights_sha256"],
            tasks=tuple(entries["m2h.tasks"].split(",")),
            preset=entries["m2h.preset"],
            form=entries["m2h.form"],
            windows=entries["m2h.windows"],
            sensor=_sensor_card(entries.get("m2h.sensor")),
        )
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise M2HError(f"{path} was not made by m2h-deploy export (its metadata lacks {words})") from None
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
        return f"m2h.config has {classes!r} classes"
    if re.fullmatch(r"[0-9a-f]{64}", card.weights_sha256) is None:
        return "m2h.weights_sha256 is no sha256"
    if card.preset not in PRESETS:
        return f"m2h.preset is {card.preset!r}"
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
    return SensorCard(facts["format"], tuple(facts["camera"]), tuple(facts["network"]))


def default_opset(proto: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return next((opset.version for opset in proto.opset_import if opset.domain == ""), 0)
