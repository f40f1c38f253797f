"""Metadata of an exported graph: read and write the `m2h.` entries of an ONNX file, which only this module does.

Works without the onnx package: a device that lacks it reads the metadata from an ONNX Runtime session.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import ValidationError

from m2h_deploy.bundle.manifest import (
    LARGEST_SIDE,
    MAX_CLASSES,
    CalibrationInfo,
    Classes,
    LabelMap,
    LoweringInfo,
    SelfTest,
    first_problem,
)
from m2h_deploy.bundle.record import Record
from m2h_deploy.choices import DepthFormat, Form, LabelResolution, Precision, SensorFormat, Windows
from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.runtime.preprocess import Normalization
from m2h_deploy.tasks import TASKS

if TYPE_CHECKING:
    import onnx

#: Entries that are also read individually, from graphs that may lack the others.
VERSION, VARIANT, PRECISION = "m2h.version", "m2h.variant", "m2h.precision"
_OWN, _SENSOR, _LOWERED = "m2h.", "m2h.sensor", "m2h.lowered"
_LABEL_MAP, _LABEL_RESOLUTION = "m2h.label_map", "m2h.label_resolution"

_R = TypeVar("_R", bound=Record)


@dataclass(frozen=True)
class SensorGraphInfo:
    """Camera and inner network of a sensor graph; sizes are width and height."""

    format: SensorFormat
    camera: tuple[int, int]
    network: tuple[int, int]
    depth: DepthFormat = "float32"


class Lowered(Record):
    """Record of a file that was lowered to FP16, INT8 or FP8: the parts of the manifest that need the float32 graph.

    A device that compiles the file may have neither torch nor the float32 graph.
    """

    self_test: SelfTest
    lowering: LoweringInfo
    calibration: CalibrationInfo | None = None


@dataclass(frozen=True)
class GraphInfo:
    """The metadata of an exported file."""

    variant: str
    config: dict
    weights_sha256: str
    tasks: tuple[str, ...]
    normalization: Normalization
    """Normalization of the input images."""
    classes: Classes
    """Classes of the labels: the network's own, or those of `label_map`."""
    form: Form
    windows: Windows
    version: str | None = None
    """Version of m2h-deploy that exported the file."""
    torch: str | None = None
    sensor: SensorGraphInfo | None = None
    """Only for a sensor graph."""
    label_map: LabelMap | None = None
    """Only for a graph that reduces the network's logits over groups of classes."""
    label_resolution: LabelResolution = "network"
    precision: str | None = None
    """Only for a graph that m2h-deploy lowered."""
    lowered: Lowered | None = None

    @property
    def depth_range(self) -> tuple[float, float]:
        """Smallest and largest depth of the network, meters."""
        return self.config["min_depth"], self.config["max_depth"]

    @staticmethod
    def read(proto: onnx.ModelProto, path: str | os.PathLike[str]) -> GraphInfo:
        """Read the metadata of `proto`, the file at `path`; raises the same errors as `parse`."""
        return GraphInfo.parse(metadata_of(proto), path)

    @staticmethod
    def parse(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> GraphInfo:
        """Parse the entries of a file's metadata.

        Raises:
            M2HError: The file at `path` was not made by m2h-deploy export, or its metadata is damaged.
        """
        try:
            info = GraphInfo(
                variant=metadata[VARIANT],
                config=json.loads(metadata["m2h.config"]),
                weights_sha256=metadata["m2h.weights_sha256"],
                tasks=tuple(metadata["m2h.tasks"].split(",")),
                normalization=Normalization.from_json(metadata["m2h.normalization"]),
                classes=_parse_record(Classes, metadata["m2h.classes"], "m2h.classes"),
                form=metadata["m2h.form"],  # type: ignore[arg-type]
                windows=metadata["m2h.windows"],  # type: ignore[arg-type]
                version=metadata.get(VERSION),
                torch=metadata.get("m2h.torch"),
                sensor=_parse_sensor(metadata.get(_SENSOR)),
                label_map=_parse_record(LabelMap, metadata[_LABEL_MAP], _LABEL_MAP) if _LABEL_MAP in metadata else None,
                label_resolution=metadata.get(_LABEL_RESOLUTION, "network"),  # type: ignore[arg-type]
                precision=metadata.get(PRECISION),
                lowered=_parse_record(Lowered, metadata[_LOWERED], _LOWERED) if _LOWERED in metadata else None,
            )
            problem = _problem(info)
        except KeyError as error:
            raise M2HError(
                f"{path} was not made by this version of m2h-deploy export (its metadata lacks {error}): "
                "export it again"
            ) from None
        except (ValueError, TypeError, RecursionError, M2HError) as error:
            problem = first_line(error)[:200]
        if problem is not None:
            again = "lower" if _LOWERED in metadata else "export"
            raise M2HError(f"{path}: its metadata is damaged ({problem}): {again} it again")
        return info

    def write(self, proto: onnx.ModelProto) -> None:
        """Write the entries to the metadata of `proto`, replacing older ones; entries of other tools are kept."""
        entries = {
            VERSION: self.version,
            VARIANT: self.variant,
            "m2h.config": json.dumps(self.config),
            "m2h.weights_sha256": self.weights_sha256,
            "m2h.tasks": ",".join(self.tasks),
            "m2h.normalization": self.normalization.to_json(),
            "m2h.classes": self.classes.model_dump_json(),
            "m2h.form": self.form,
            "m2h.windows": self.windows,
            "m2h.torch": self.torch,
            _SENSOR: json.dumps(asdict(self.sensor)) if self.sensor is not None else None,
            _LABEL_MAP: self.label_map.model_dump_json() if self.label_map is not None else None,
            _LABEL_RESOLUTION: self.label_resolution if self.label_resolution != "network" else None,
            PRECISION: self.precision,
            _LOWERED: self.lowered.model_dump_json() if self.lowered is not None else None,
        }
        others = [entry for entry in proto.metadata_props if not entry.key.startswith(_OWN)]
        del proto.metadata_props[:]
        proto.metadata_props.extend(others)
        for key, value in entries.items():
            if value is not None:
                proto.metadata_props.add(key=key, value=value)


def metadata_of(proto: onnx.ModelProto) -> dict[str, str]:
    """Return the entries of a file's metadata."""
    return {entry.key: entry.value for entry in proto.metadata_props}


def is_sensor_graph(proto: onnx.ModelProto) -> bool:
    """Return whether `proto` is a graph that `m2h-deploy export --sensor` wrote."""
    return _SENSOR in metadata_of(proto)


def _problem(info: GraphInfo) -> str | None:
    """Return the first invalid entry; None if all are valid."""
    if not isinstance(info.config, dict):
        return "m2h.config is not an object"
    low, high, classes = (info.config.get(name) for name in ("min_depth", "max_depth", "num_classes"))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or not 0 <= low < high < math.inf:
        return f"m2h.config has the depth range {low!r} to {high!r}"
    if isinstance(classes, bool) or not isinstance(classes, int) or not 1 <= classes <= MAX_CLASSES:
        return f"m2h.config has {classes!r} classes, expected 1 to {MAX_CLASSES}"
    label_map = info.label_map
    named = info.classes.names if label_map is None else label_map.network_classes
    if len(named) != classes:
        return (
            f"{'m2h.classes' if label_map is None else _LABEL_MAP} names {len(named)} classes, m2h.config has {classes}"
        )
    if label_map is not None and len(label_map.groups) != len(info.classes.names):
        return f"{_LABEL_MAP} has {len(label_map.groups)} groups, m2h.classes names {len(info.classes.names)} classes"
    if re.fullmatch(r"[0-9a-f]{64}", info.weights_sha256) is None:
        return "m2h.weights_sha256 is not a sha256"
    sensor = info.sensor
    if sensor is not None and not all(_is_size(size) for size in (sensor.camera, sensor.network)):
        return f"m2h.sensor has no sizes of 1 to {LARGEST_SIDE} pixels"
    return next(_unknown_values(info), None)


def _unknown_values(info: GraphInfo) -> Iterator[str]:
    """Yield the entries that hold a value which this version does not know."""
    expected: list[tuple[str, Any, tuple[str, ...]]] = [
        ("m2h.form", info.form, get_args(Form)),
        ("m2h.windows", info.windows, get_args(Windows)),
        (_LABEL_RESOLUTION, info.label_resolution, get_args(LabelResolution)),
        *(("m2h.tasks", task, TASKS) for task in info.tasks),
    ]
    if info.precision is not None:
        expected.append((PRECISION, info.precision, get_args(Precision)))
    if info.sensor is not None:
        expected.append((f"the format in {_SENSOR}", info.sensor.format, get_args(SensorFormat)))
        expected.append((f"the depth in {_SENSOR}", info.sensor.depth, get_args(DepthFormat)))
    for entry, value, known in expected:
        if value not in known:
            yield f"{entry} is '{value!s:.40}', expected {' or '.join(known)}"


def _is_size(size: tuple[int, ...]) -> bool:
    return len(size) == 2 and all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in size)


def _parse_sensor(text: str | None) -> SensorGraphInfo | None:
    if text is None:
        return None
    facts = json.loads(text)
    if not isinstance(facts, dict) or not {"format", "camera", "network"} <= facts.keys():
        raise ValueError(f"{_SENSOR} lacks format, camera or network")
    return SensorGraphInfo(
        facts["format"], tuple(facts["camera"]), tuple(facts["network"]), facts.get("depth", "float32")
    )


def _parse_record(kind: type[_R], text: str, key: str) -> _R:
    try:
        return kind.model_validate_json(text)
    except (ValidationError, RecursionError) as error:
        raise ValueError(f"{key}: {first_problem(error)}") from None
