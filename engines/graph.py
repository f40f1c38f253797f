"""Reading the ONNX files that engines are built from."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal

import onnx

from m2h_deploy.errors import M2HError


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
        raise M2HError(
            f"{path} is not an ONNX file: {(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from None


def read_card(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> ModelCard:
    """The model card of an exported graph. Raises M2HError when the file was not made by m2h-deploy export."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    try:
        return ModelCard(
            variant=entries["m2h.variant"],
            config=json.loads(entries["m2h.config"]),
            weights_sha256=entries["m2h.weights_sha256"],
            tasks=tuple(entries["m2h.tasks"].split(",")),
            preset=entries["m2h.preset"],
            form=entries["m2h.form"],
            windows=entries["m2h.windows"],
            sensor=_sensor_card(entries.get("m2h.sensor")),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise M2HError(f"{path} was not made by m2h-deploy export (its metadata lacks {error})") from None


def _sensor_card(text: str | None) -> SensorCard | None:
    if text is None:
        return None
    facts = json.loads(text)
    return SensorCard(facts["format"], tuple(facts["camera"]), tuple(facts["network"]))


def default_opset(proto: onnx.ModelProto) -> int:
    """Version of the standard operators that the graph uses."""
    return next((opset.version for opset in proto.opset_import if opset.domain == ""), 0)
