"""The bundle: a folder with `manifest.json` and the files it names. The manifest describes how to use the engine.

The format, in a page:

- `manifest.json` is UTF-8 JSON that follows `manifest.schema.json`; unknown fields are an error.
- `schema_version` is an integer. A reader accepts its own version and rejects a newer one.
- `files` maps plain file names (letters, digits, `.`, `_`, `-`; no folders) to sha256 sums. Every file of the bundle is
  named there, and every one is checked before it is used. A link that leads out of the folder is rejected.
- `self_test` holds a known input's expected values, and in `made_with` the fields that they depend on: a field that was
  edited since is named before the engine runs (by the Python runtime; the C++ one then fails the self-test).
- Nothing in a bundle is unpickled or executed as code; the engine file goes to the engine it was built for.
- A bundle is written under a temporary name next to its destination and renamed, so it is never incomplete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from m2h_deploy.choices import Precision
from m2h_deploy.tasks import TABLE, task_of

SCHEMA_VERSION = 1

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
LARGEST_SIDE = 16384
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Triple = tuple[float, float, float]


#: Labels are uint8, and 255 marks unlabeled pixels.
MAX_CLASSES = 255

#: Fields that an engine's outputs, and so the self-test, depend on: its input and its arithmetic.
_NUMERIC = (
    "input",
    "sensor",
    "engine.kind",
    "engine.precision",
    "engine.options.inference_precision",
    "engine.options.provider",
    "engine.options.provider_options",
)


class Record(BaseModel):
    """A part of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
    classes: Classes
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


def inconsistency(manifest: Manifest) -> str | None:
    """Return a message about the first field that contradicts others; None if all are consistent."""
    problem, edited = next(_problems(manifest), None), edited_field(manifest)
    return f"{problem}; {edited}" if problem and edited else problem


def record_fields(manifest: Manifest) -> Manifest:
    """Return `manifest` with the fields that its self-test depends on recorded in it."""
    if manifest.self_test is None:
        return manifest
    test = manifest.self_test.model_copy(update={"made_with": _numeric_fields(manifest)})
    return manifest.model_copy(update={"self_test": test})


def edited_field(manifest: Manifest) -> str | None:
    """Return a message about the first field that changed since the self-test was made; None if none changed."""
    if manifest.self_test is None:
        return None
    present = manifest.model_dump(mode="json")
    for path, value in manifest.self_test.made_with.items():
        if (found := _at(present, path)) != value:
            return f"{path:.100} is {found!r:.100} and was {value!r:.100} when the bundle was built"
    return None


def _numeric_fields(manifest: Manifest) -> dict[str, Any]:
    """Return the values of `_NUMERIC` by path, such as `input.mean`, as in JSON; absent fields are left out."""
    present = manifest.model_dump(mode="json")
    # A sensor graph contains the depth range; for other graphs it may be changed.
    paths = [*_NUMERIC, *(["depth_range"] if manifest.sensor is not None else [])]
    fields: dict[str, Any] = {}
    for path in paths:
        value = _at(present, path)
        fields |= {f"{path}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {path: value}
    return {path: value for path, value in fields.items() if value is not None}


def _at(values: Any, path: str) -> Any:
    """Return the value at a path such as `input.mean`; None if it is absent."""
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _check_classes(manifest)
    yield from _check_input(manifest)
    names = [spec.name for spec in manifest.outputs]
    if not names:
        yield "outputs: there are none"
    if len(set(manifest.tasks)) < len(names):
        yield "outputs: a task is there twice"
    for index, spec in enumerate(manifest.outputs):
        for problem in _check_output(manifest, spec):
            yield f"outputs.{index}: {spec.name}: {problem}"
    near, far = manifest.depth_range
    if not (math.isfinite(near) and math.isfinite(far) and 0 <= near < far):
        yield f"depth_range: {near} to {far} m is not a range: expected 0 <= near < far"
    yield from _check_self_test(manifest)
    if manifest.engine.file not in manifest.files:
        yield f"engine.file: {manifest.engine.file} is not among the manifest's files"
    threads = manifest.engine.options.get("threads")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024):
        yield f"engine.options.threads: {threads!r} is not a whole number from 1 to 1024"


def _check_classes(manifest: Manifest) -> Iterator[str]:
    names, palette = manifest.classes.names, manifest.classes.palette
    if len(names) != len(palette):
        yield f"classes: {len(names)} names and {len(palette)} colors"
    if len(names) > MAX_CLASSES:
        yield f"classes: {len(names)} are more than {MAX_CLASSES}"
    if any(not 0 <= level <= 255 for color in palette for level in color):
        yield "classes.palette: colors are 0 to 255"


def _check_input(manifest: Manifest) -> Iterator[str]:
    spec = manifest.input
    if not spec.name:
        yield "input.name: is empty"
    numbers = (spec.scale, *spec.mean, *spec.std)
    if not all(math.isfinite(value) for value in numbers) or spec.scale <= 0:
        yield "input: scale, mean and std are finite numbers, and scale is above 0"
    if spec.batch is not None and spec.batch > 1024:
        yield f"input.batch: {spec.batch} is more than 1024"
    if manifest.sensor is None:
        if spec.layout != "NCHW" or spec.color != "RGB" or spec.dtype == "uint8":
            yield "input.color: only a sensor graph takes raw pixels, and sensor is missing"
        return
    raw = {"uint8": ("NHWC", "BGR"), "nv12": ("NV12", "YCbCr")}[manifest.sensor.format]
    if (spec.layout, spec.color, spec.dtype) != (*raw, "uint8"):
        yield f"sensor.format: {manifest.sensor.format} is {raw[0]} {raw[1]} uint8, not {spec.layout} {spec.color}"
    if manifest.sensor.format == "nv12" and (spec.height % 2 or spec.width % 2):
        yield "input: NV12 has even sides"


def _check_output(manifest: Manifest, spec: OutputSpec) -> Iterator[str]:
    image, task = manifest.input, TABLE[task_of(spec.name)]
    if manifest.sensor is not None:
        # A sensor graph's results are final arrays of the camera's size.
        shape: tuple[int | None, ...] = (image.batch, image.height, image.width, *task.components)
        if spec.shape != shape:
            yield f"shape {_words(spec.shape)}, expected {_words(shape)}"
        return
    if spec.name == "labels" or spec.dtype not in ("float32", "float16"):
        yield "only a sensor graph gives labels and whole numbers"
    shape = (image.batch, task.channels or len(manifest.classes.names), image.height, image.width)
    if spec.shape != shape:
        yield f"shape {_words(spec.shape)}, expected {_words(shape)}"


def _check_self_test(manifest: Manifest) -> Iterator[str]:
    test = manifest.self_test
    if test is None:
        return
    names = {spec.name for spec in manifest.outputs}
    for name, expected in test.outputs.items():
        if name not in names:
            yield f"self_test.outputs: the engine has no output {name}"
        if not expected.values:
            yield f"self_test.outputs.{name}.values: there are none"
        if not all(math.isfinite(value) for value in (*expected.values, expected.deviation, test.tolerance_of(name))):
            yield f"self_test.outputs.{name}: values, deviation and tolerance are finite numbers"


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if side is None else str(side) for side in shape) + ")"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the manifest, as stored beside this file in `manifest.schema.json`."""
    return Manifest.model_json_schema()


if __name__ == "__main__":  # rewrites the schema after a change of the manifest
    Path(__file__).with_name("manifest.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n")
