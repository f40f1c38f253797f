"""The bundle: a folder with `manifest.json` and the files it names. The manifest alone says how to use the engine.

The format, in a page:

- `manifest.json` is UTF-8 JSON that follows `manifest.schema.json`; unknown fields are an error.
- `schema_version` is a whole number. A reader takes its own version and refuses a newer one.
- `files` maps plain file names (letters, digits, `.`, `_`, `-`; no folders) to sha256 sums. Every file of the bundle
  is named there, and every one is checked before it is used. A link that leads out of the folder is refused.
- `self_test` holds a known input's expected values, and in `made_with` the fields that they depend on: a field that was
  edited since is named before the engine runs (by the Python runtime; the C++ one then fails the self-test).
- Nothing in a bundle is unpickled or executed as code; the engine file goes to the engine it was built for.
- A bundle is written under another name beside its place and renamed, so half a bundle never exists.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from m2h_deploy.causes import MachineError, failure, reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_whole_folder, is_temporary, whole_folder, write_text

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=16384)]
Triple = tuple[float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelInfo(_Record):
    """Where the engine's weights came from."""

    variant: str
    weights_sha256: Sha256
    config: dict[str, Any]
    form: str
    windows: str
    opset: int
    onnx_sha256: Sha256


class InputSpec(_Record):
    """What the engine takes: (pixel * scale - mean) / std, per channel in the engine's color order."""

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


class OutputSpec(_Record):
    """One output of the engine."""

    name: Literal["depth", "semantics", "normals", "edges", "labels"]
    meaning: str
    unit: str
    dtype: Literal["float32", "float16", "uint8", "uint16"] = "float32"
    shape: tuple[int | None, ...]


class SensorInfo(_Record):
    """The engine takes a camera's raw pixels and gives finished results: it resizes, normalizes and decides itself."""

    format: Literal["uint8", "nv12"]
    """uint8: (N, H, W, 3) BGR. nv12: (N, 3/2 H, W), Y above interleaved U and V. H x W is the input's size."""
    network_height: Side
    network_width: Side


class Classes(_Record):
    """Names and colors (RGB) of the semantic classes, by index."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]


class EngineInfo(_Record):
    """What runs the bundle and what it was built for."""

    kind: str
    version: str
    precision: Literal["fp32", "fp16", "int8"]
    file: FileName
    targets: tuple[str, ...] = ()
    """Compute capabilities or instruction sets; empty where the file is portable."""
    options: dict[str, Any] = Field(default_factory=dict)


class LoweringInfo(_Record):
    """What leaving float32 changed in the graph, and what it costs."""

    psnr: dict[str, float]
    """Decibels by output against the float32 graph on ONNX Runtime's CPU; empty where no frames were given."""
    float32_nodes: int
    """Nodes that stayed float32, for headroom."""
    int8_layers: int
    weights_beyond_fp16: tuple[str, ...]
    """Layers with weights that FP16 rounds to zero or infinity."""


class CalibrationInfo(_Record):
    """The frames behind INT8 ranges."""

    method: str
    frames: Annotated[int, Field(ge=1)]
    seed: int
    frames_sha256: Sha256


class SelfTestOutput(_Record):
    """Expected values of one output at evenly spaced positions of the flattened tensor, and its deviation."""

    values: Annotated[tuple[float, ...], Field(max_length=65536)]
    deviation: Annotated[float, Field(gt=0)]
    """Standard deviation, and where that is less a quarter of the root mean square: rounding goes with the size of
    the values, also where they hardly differ."""
    tolerance: Annotated[float, Field(gt=0)] | None = None
    """Of this output, where it is another than the self-test's own."""


class SelfTest(_Record):
    """A known input and what it must give. See `m2h_deploy.bundle.self_test` for the input's formula."""

    pattern: Literal["stripes-1"] = "stripes-1"
    tolerance: Annotated[float, Field(gt=0)]
    """Largest mean error over the values without the worst sixteenth of them, as a share of the deviation; of labels
    the largest share that differs."""
    outputs: dict[str, SelfTestOutput]
    reference: Literal["float32 graph", "lowered graph"] = "float32 graph"
    """What gave the values, on ONNX Runtime's CPU. "lowered graph": the FP16 or INT8 graph itself, of another tool, so
    that a passed test proves what the engine made of that graph and not how far the graph is from float32."""
    made_with: dict[str, Any] = Field(default_factory=dict)
    """The fields of this manifest that the numbers depend on, by path, as they were when the bundle was built."""

    def tolerance_of(self, name: str) -> float:
        """Return the tolerance of one output."""
        own = self.outputs[name].tolerance
        return self.tolerance if own is None else own


class Manifest(_Record):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    created_by: str
    model: ModelInfo
    input: InputSpec
    sensor: SensorInfo | None = None
    """Only where raw pixels go in."""
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
    files: dict[FileName, Sha256]

    @model_validator(mode="after")
    def _check_sensor(self) -> Manifest:
        if (self.sensor is None) != (self.input.layout == "NCHW"):
            raise ValueError("a sensor belongs to an input of raw pixels, and only to one")
        return self

    @property
    def network_input(self) -> InputSpec:
        """What the network takes: `input`, or inside of a sensor graph what its own preprocess makes."""
        if self.sensor is None:
            return self.input
        size = {"height": self.sensor.network_height, "width": self.sensor.network_width}
        return self.input.model_copy(update={"dtype": "float32", "layout": "NCHW", "color": "RGB", **size})

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the outputs answer: depth, semantics (also as labels), normals, edges."""
        return tuple("semantics" if spec.name == "labels" else spec.name for spec in self.outputs)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest was read and whose files were checked."""

    path: Path
    manifest: Manifest

    @property
    def engine_file(self) -> Path:
        return self.path / self.manifest.engine.file


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read and check the bundle at `path`: schema version, manifest, file names, sha256 sums.

    Raises M2HError that names the file or field that does not fit.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, expected in manifest.files.items():
        _check_file(path, name, expected)
    unnamed = _unnamed(path, manifest)
    if unnamed:  # an engine could read it, and no checksum covers it
        raise M2HError(f"{path}: {unnamed[0]} is not named in the manifest; a bundle holds nothing else")
    return Bundle(path, manifest)


def _unnamed(path: Path, manifest: Manifest) -> list[str]:
    """What the bundle's folder holds beside it, but for a manifest that another process is writing."""
    names = (entry.name for entry in path.iterdir() if entry.name not in {MANIFEST, *manifest.files})
    return sorted(name for name in names if not is_temporary(name, MANIFEST))


def _read_manifest(path: Path) -> Manifest:
    from m2h_deploy.bundle.consistency import inconsistency  # which is about this module's records

    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        raise M2HError(f"{path} is not a bundle: no {MANIFEST} in it; make one with m2h-deploy build")
    try:
        if file.stat().st_size > 16_000_000:
            raise M2HError(f"{file} is too large for a manifest")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        damaged = f"{file} is not readable JSON ({words}): build or copy the bundle again"
        raise failure(error, f"cannot read {file}", damaged) from None
    if not isinstance(content, dict):
        raise M2HError(f"{file} is not a manifest: expected a JSON object")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise M2HError(f"{file} has schema version {version}, newer than {SCHEMA_VERSION}: upgrade m2h-deploy")
    try:
        manifest = Manifest.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise M2HError(f"{file}: {_first_problem(error)}") from None
    problem = inconsistency(manifest)
    if problem is not None:
        raise M2HError(f"{file}: {problem}: build the bundle again")
    return manifest


def _first_problem(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    return " ".join(f"{field}: {first['msg']}".split())[:400]


def _check_file(folder: Path, name: str, expected: str) -> None:
    file = folder / name
    if not file.is_file():
        raise M2HError(f"{folder}: {name} is missing; build or copy the bundle again")
    if file.resolve().parent != folder.resolve():
        raise M2HError(f"{folder}: {name} leads out of the bundle's folder")
    try:
        found = file_sha256(file)
    except OSError as error:
        raise MachineError(f"cannot read {file}: {reason(error)}") from None
    if found != expected:
        raise M2HError(f"{folder}: {name} does not have the manifest's sha256 (damaged or replaced): build it again")


def file_sha256(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_outside(bundle_path: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """`target`, absolute. Raises M2HError where it lies in the bundle, which holds nothing but its own files."""
    path = Path(target).resolve()
    if path.is_relative_to(Path(bundle_path).resolve()):
        raise M2HError(f"{target} lies in the bundle {bundle_path}, which holds only its files: choose another place")
    return path


def copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy the manifest and the files that it names to the new folder `target`."""
    target.mkdir()
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, target / name)


@contextmanager
def new_bundle_folder(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder that becomes `out_dir` when the block ends well, and vanishes when it does not.

    An existing bundle at `out_dir` is replaced as a whole, and comes back if that fails. Any other folder or file is
    refused, and so is a bundle with files that its manifest does not name: they are somebody's.
    """
    out = check_bundle_place(out_dir)
    with whole_folder(out, replace=True, last=MANIFEST) as temporary:
        yield temporary


def check_bundle_place(out_dir: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> Path:
    """Return `out_dir`, absolute. Raises M2HError where no bundle can be built there: before the work.

    `sources` are files that the build reads: a bundle that holds one of them is not replaced.
    """
    out = Path(out_dir).resolve()
    _check_replaceable(out)
    for source in sources:
        if Path(source).resolve().is_relative_to(out):
            raise M2HError(f"{source} lies in {out}, which would be replaced: choose another place")
    return check_whole_folder(out, replace=True)


def _check_replaceable(out: Path) -> None:
    held = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else None
    if not out.exists() or held == []:
        return
    if not (out / MANIFEST).is_file():
        holds = f" (it holds {held[0]})" if held else ""
        raise M2HError(f"{out} exists and is not a bundle{holds}: choose another place")
    try:
        others = _unnamed(out, _read_manifest(out))
    except M2HError as error:
        raise M2HError(f"{error}; to build in its place, remove {out} first") from None
    if others:
        raise M2HError(
            f"{out} holds {others[0]}, which its manifest does not name: choose another place or move it out"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` in one step: a reader sees the old one or the new one."""
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2))


def record_result(
    bundle: Bundle, *, parity: dict[str, Any] | None = None, latency: dict[str, Any] | None = None
) -> Bundle:
    """The bundle with a parity or latency result in its manifest, on disk too.

    What else was recorded meanwhile stays. Raises M2HError where the folder holds another engine by now.
    """
    updates = {key: value for key, value in (("parity", parity), ("latency", latency)) if value is not None}
    present = _read_manifest(bundle.path)
    if present.files != bundle.manifest.files:
        raise M2HError(f"{bundle.path} was rebuilt meanwhile: the result is of the earlier engine, and is not recorded")
    manifest = present.model_copy(update=updates)
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the manifest, as stored beside this file in `manifest.schema.json`."""
    return Manifest.model_json_schema()


if __name__ == "__main__":  # writes the schema again after a change of the manifest
    Path(__file__).with_name("manifest.schema.json").write_text(json.dumps(json_schema(), indent=2) + "\n")
