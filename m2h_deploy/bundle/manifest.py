"""The bundle: a folder with `manifest.json` and the files it names. The manifest describes how to use the engine.

The format, in a page:

- `manifest.json` is UTF-8 JSON that follows `manifest.schema.json`; unknown fields are an error.
- `schema_version` is an integer. A reader accepts its own version and rejects a newer one.
- `files` maps plain file names (letters, digits, `.`, `_`, `-`; no folders) to sha256 sums. Every file of the bundle is
  named there, and every one is checked before it is used. A link that leads out of the folder is rejected.
- `self_test` holds a known input's expected values, and in `made_with` the fields that they depend on: a field that was
  edited since is named before the engine runs.
- Nothing in a bundle is unpickled or executed as code; the engine file goes to the engine it was built for.
- A bundle is written under a temporary name next to its destination and renamed, so it is never incomplete.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.record import Record
from m2h_deploy.choices import LabelResolution, Precision
from m2h_deploy.tasks import task_of

SCHEMA_VERSION = 1

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
LARGEST_SIDE = 16384
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Triple = tuple[float, float, float]


#: Labels are uint8, and 255 marks unlabeled pixels.
MAX_CLASSES = 255


class ModelInfo(Record):
    """Origin of the engine's weights."""

    variant: str
    weights_sha256: Sha256
    config: dict[str, Any]
    form: str
    windows: str
    opset: int
    onnx_sha256: Sha256


#: Bytes of one value by its type.
_BYTES = {"float32": 4, "float16": 2, "uint8": 1, "uint16": 2}


class InputSpec(Record):
    """The engine's input: (pixel * scale - mean) / std, per channel in the engine's color order."""

    name: str
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC", "NV12"] = "NCHW"
    """NHWC and NV12 are raw pixels: the engine itself normalizes (see SensorInfo)."""
    batch: Annotated[int, Field(ge=1)] | None
    """None: any batch size."""
    height: Side
    width: Side
    color: Literal["RGB", "BGR", "YCbCr"] = "RGB"
    scale: float = 1 / 255
    mean: Triple
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    resize: Literal["bilinear, half-pixel centers, no antialias"] = "bilinear, half-pixel centers, no antialias"

    @property
    def sides(self) -> tuple[int, ...]:
        """Shape of the engine's input without the batch."""
        if self.layout == "NV12":
            return (self.height * 3 // 2, self.width)
        return (self.height, self.width, 3) if self.layout == "NHWC" else (3, self.height, self.width)


class OutputSpec(Record):
    """One output of the engine."""

    name: Literal["depth", "semantics", "normals", "edges", "labels"]
    meaning: str
    unit: str
    dtype: Literal["float32", "float16", "uint8", "uint16"] = "float32"
    shape: tuple[int | None, ...]


class SensorInfo(Record):
    """A graph that takes a camera's raw pixels and returns final results: it includes pre- and postprocessing."""

    format: Literal["uint8", "nv12"]
    """uint8: (N, H, W, 3) BGR. nv12: (N, 3/2 H, W), Y above interleaved U and V. H x W is the input's size."""
    network_height: Side
    network_width: Side


class Classes(Record):
    """Names and colors (RGB) of the semantic classes, by index."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


class LabelMap(Record):
    """Another label space, whose classes are groups of the network's: its logits are reduced over each group."""

    name: str
    """Name of the label space, such as nyud20."""
    network_classes: tuple[str, ...]
    """Names of the network's own classes."""
    groups: tuple[tuple[int, ...], ...]
    """For each class of `classes`, the network's classes that it consists of; they are disjoint, and one may be empty.
    A class of the network that no group holds is never predicted."""

    @property
    def table(self) -> tuple[int | None, ...]:
        """For each of the network's classes its class in this label space, or None."""
        places = {source: target for target, group in enumerate(self.groups) for source in group}
        return tuple(places.get(source) for source in range(len(self.network_classes)))


class EngineInfo(Record):
    """The engine that runs the bundle, and the targets it was built for."""

    kind: str
    version: str
    precision: Precision
    file: FileName
    targets: tuple[str, ...] = ()
    """Compute capabilities or instruction sets; empty if the file is portable."""
    options: dict[str, Any] = Field(default_factory=dict)


class LoweringInfo(Record):
    """Changes to the graph by lowering its precision, and the resulting PSNR."""

    psnr: dict[str, float]
    """Decibels by output against the float32 graph on ONNX Runtime's CPU; empty without frames."""
    float32_nodes: int
    """Number of nodes that stayed float32."""
    int8_layers: int
    fp8_layers: int = 0
    weights_beyond_fp16: tuple[str, ...]
    """Layers with weights that FP16 rounds to zero or infinity."""


class CalibrationInfo(Record):
    """The frames that INT8 or FP8 ranges were measured on."""

    method: str
    frames: Annotated[int, Field(ge=1)]
    seed: int
    frames_sha256: Sha256


class SelfTestOutput(Record):
    """Expected values of one output at evenly spaced positions of the flattened tensor, and its deviation."""

    values: Annotated[tuple[float, ...], Field(max_length=65536)]
    deviation: Annotated[float, Field(gt=0)]
    """Standard deviation, at least a quarter of the root mean square: rounding errors scale with the size of the
    values, even if these hardly differ."""
    tolerance: Annotated[float, Field(gt=0)] | None = None
    """Tolerance of this output; None: that of the self-test."""


class SelfTest(Record):
    """A known input and its expected outputs. See `m2h_deploy.bundle.self_test` for the input's formula."""

    pattern: Literal["stripes-1"] = "stripes-1"
    tolerance: Annotated[float, Field(gt=0)]
    """Largest mean error over the values without the worst sixteenth of them, as a share of the deviation; for labels
    the largest share that differs."""
    outputs: dict[str, SelfTestOutput]
    reference: Literal["float32 graph", "lowered graph"] = "float32 graph"
    """Graph that gave the values on ONNX Runtime's CPU. "lowered graph": the lowered graph itself, made by another
    tool; a passed test then shows that the engine computes that graph, not how far it is from float32."""
    measured: dict[str, float] = Field(default_factory=dict)
    """Error of each output on the machine that built the bundle, in the units of `tolerance`; empty if the engine could
    not run there."""
    made_with: dict[str, Any] = Field(default_factory=dict)
    """The fields of this manifest that the outputs depend on, by path, with their values at build time."""

    def tolerance_of(self, name: str) -> float:
        """Return the tolerance of one output."""
        own = self.outputs[name].tolerance
        return self.tolerance if own is None else own


class Manifest(Record):
    """Contents of `manifest.json`."""

    schema_version: Literal[1] = 1
    created_by: str
    model: ModelInfo
    input: InputSpec
    sensor: SensorInfo | None = None
    """Only for a graph that takes raw pixels."""
    outputs: tuple[OutputSpec, ...]
    depth_range: tuple[float, float]
    """Meters; depth is clamped to it."""
    depth_calibration: DepthCalibration | None = None
    """Correction of the depth to one camera, which the program that uses the engine applies."""
    classes: Classes
    label_map: LabelMap | None = None
    """Only for a graph that gives labels in another space than its network's: `classes` are that space's."""
    label_resolution: LabelResolution = "network"
    """network: argmax of the logits, then labels are resized. full: logits are resized to the image, then argmax."""
    engine: EngineInfo
    lowering: LoweringInfo | None = None
    calibration: CalibrationInfo | None = None
    self_test: SelfTest | None = None
    parity: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    """How much faster than float32 on the same engine it was where it was built, see `engines.speed.Speed`."""
    tuning: dict[str, Any] | None = None
    """The table of the tuning that chose this engine, see `engines.tune.result.TuneResult`."""
    files: dict[FileName, Sha256]

    @model_validator(mode="after")
    def _check_sensor(self) -> Manifest:
        if (self.sensor is None) != (self.input.layout == "NCHW"):
            raise ValueError("a sensor belongs to an input of raw pixels, and only to one")
        return self

    @property
    def network_input(self) -> InputSpec:
        """The network's input: `input`, or in a sensor graph the output of its own preprocess."""
        if self.sensor is None:
            return self.input
        size = {"height": self.sensor.network_height, "width": self.sensor.network_width}
        return self.input.model_copy(update={"dtype": "float32", "layout": "NCHW", "color": "RGB", **size})

    @property
    def result_range(self) -> tuple[float, float]:
        """Range of depth after the calibration, meters."""
        calibration = self.depth_calibration
        return self.depth_range if calibration is None else calibration.range_of(self.depth_range)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the outputs: depth, semantics (also as labels), normals, edges."""
        return tuple(task_of(spec.name) for spec in self.outputs)

    @property
    def output_bytes(self) -> int:
        """Bytes of the engine's outputs for one frame."""
        sides = (spec.shape[1:] for spec in self.outputs)
        sizes = (_BYTES[spec.dtype] for spec in self.outputs)
        return sum(math.prod(side or 1 for side in shape) * size for shape, size in zip(sides, sizes, strict=True))


def first_problem(error: ValidationError | RecursionError) -> str:
    """Return the first invalid field and the reason."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    return " ".join(f"{field}: {first['msg']}".split())[:400]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the manifest, as stored beside this file in `manifest.schema.json`."""
    return Manifest.model_json_schema()


if __name__ == "__main__":  # rewrites the schema after a change of the manifest
    Path(__file__).with_name("manifest.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n")
