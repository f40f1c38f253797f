"""Check that the fields of a manifest agree with each other, and with those that its self-test was made with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from m2h_deploy.bundle.manifest import MAX_CLASSES, Manifest, OutputSpec
from m2h_deploy.tasks import TABLE, task_of

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
        yield "outputs: the list is empty"
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
    mapping = manifest.label_map
    if mapping is None:
        return
    sources = [source for group in mapping.groups for source in group]
    if len(mapping.groups) != len(names):
        yield f"label_map.groups: {len(mapping.groups)} groups and {len(names)} classes"
    if len(set(sources)) < len(sources):
        yield "label_map.groups: a class of the network is in two of them"
    if any(not 0 <= source < len(mapping.network_classes) for source in sources):
        yield f"label_map.groups: the network's classes are 0 to {len(mapping.network_classes) - 1}"


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
            yield f"self_test.outputs.{name}.values: the list is empty"
        if not all(math.isfinite(value) for value in (*expected.values, expected.deviation, test.tolerance_of(name))):
            yield f"self_test.outputs.{name}: values, deviation and tolerance are finite numbers"


def _words(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if side is None else str(side) for side in shape) + ")"
