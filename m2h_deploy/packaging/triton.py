"""Write a Triton model repository of a bundle; this needs no Triton.

A sensor graph for ONNX Runtime or TensorRT is served by Triton's own backend: raw pixels in, final arrays out. A depth
calibration is written into the copied ONNX file. Every other bundle, and a calibrated plan of TensorRT, runs in the
Python backend through `m2h_deploy.Runtime`, with the same inputs and outputs.
`config.pbtxt` follows Triton's `model_config.proto`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.backends import KINDS
from m2h_deploy.backends.registry import TritonBackend
from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import Bundle, check_outside, copy_bundle, load_bundle
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import whole_folder, write_text
from m2h_deploy.serving.options import (
    IMAGE,
    check_batching,
    check_name,
    client_parameters,
    engine_batch,
    output_names,
)
from m2h_deploy.tasks import TABLE

_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16"}
_MODEL = Path(__file__).parents[1] / "serving" / "python_model.py"


class _Name(str):
    """A value of an enumeration, which is written without quotes."""

    __slots__ = ()


@dataclass(frozen=True)
class RepositoryOptions:
    """How Triton serves the model."""

    name: str = "m2h"
    max_batch: int = 8
    """Largest batch. A graph with a fixed batch keeps it, and Triton does not batch."""
    delay_ms: float = 2.0
    """Milliseconds that a frame waits for others."""
    instances: int = 1
    """Number of copies of the engine that run concurrently."""
    threads: int | None = None
    """CPU threads of each copy; None: those of the bundle, or the engine's own choice."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_batching(self.max_batch, self.delay_ms)
        if not 1 <= self.instances <= 64:
            raise M2HError(f"{self.instances} instances: must be between 1 and 64")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise M2HError(f"threads {self.threads}: must be between 1 and 1024")


def write_repository(
    bundle_path: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    options: RepositoryOptions | None = None,
) -> Path:
    """Write the model's folder into `repository`, which is created if missing and may hold other models.

    Returns:
        The model's folder, `repository/name`.

    Raises:
        M2HError: The model's folder exists, or cannot be written.
    """
    options = options or RepositoryOptions()
    bundle = load_bundle(bundle_path)
    if bundle.manifest.engine.options.get("plugins"):
        raise M2HError(f"{bundle.path} needs a plug-in library, which a model repository does not contain")
    out = check_outside(bundle.path, repository) / options.name
    with whole_folder(out) as folder:
        version = folder / "1"
        version.mkdir()
        backend = native_backend(bundle.manifest)
        if backend is not None:
            _copy_engine(bundle, version, backend)
        else:
            copy_bundle(bundle, version / "bundle")
            shutil.copyfile(_MODEL, version / "model.py")
        write_text(folder / "config.pbtxt", config_text(bundle, options))
    return out


def native_backend(manifest: Manifest) -> TritonBackend | None:
    """Return the backend of Triton that runs the engine file; None where it takes no raw pixels.

    Also None for a calibrated plan, whose depth only our runtime corrects.
    """
    if manifest.sensor is None or manifest.engine.options.get("weights"):  # only our runtime restores stripped weights
        return None
    kind = KINDS.get(manifest.engine.kind)
    backend = None if kind is None else kind.triton
    return None if backend is None or (_calibration(manifest) and not backend.onnx) else backend


def _calibration(manifest: Manifest) -> DepthCalibration | None:
    return manifest.depth_calibration if "depth" in manifest.tasks else None


def _copy_engine(bundle: Bundle, version: Path, backend: TritonBackend) -> None:
    """Copy the bundle's files for one of Triton's own backends, with the depth calibration in the graph."""
    calibration = _calibration(bundle.manifest)
    for name in bundle.manifest.files:
        if name != bundle.manifest.engine.file:
            shutil.copyfile(bundle.path / name, version / name)
        elif calibration is None:
            shutil.copyfile(bundle.path / name, version / backend.file)
        else:
            try:
                from m2h_deploy.packaging.depth_graph import write_calibrated
            except ImportError as error:
                needing = f"writing the depth calibration of {bundle.path} into its graph"
                raise missing_extra("onnx", "build", needing, error=error) from None
            write_calibrated(bundle.path / name, version / backend.file, calibration)


def is_native(manifest: Manifest) -> bool:
    """Return whether one of Triton's own backends runs the graph, which takes raw pixels."""
    return native_backend(manifest) is not None


def batches(manifest: Manifest) -> bool:
    """Return whether Triton batches requests: not for a fixed batch in one of Triton's own backends."""
    return native_backend(manifest) is None or manifest.input.batch is None


def config_text(bundle: Bundle, options: RepositoryOptions) -> str:
    """Return the text of `config.pbtxt`: Triton's ModelConfig in protobuf's text format."""
    manifest = bundle.manifest
    backend = native_backend(manifest)
    native = backend is not None
    largest = min(options.max_batch, engine_batch(manifest) or options.max_batch) if native else options.max_batch
    inputs, outputs = _native_tensors(manifest) if native else _runtime_tensors(manifest)
    config: dict[str, Any] = {
        "name": options.name,
        "backend": "python" if backend is None else backend.name,
        "max_batch_size": largest if batches(manifest) else 0,
        "input": inputs,
        "output": outputs,
        "instance_group": [{"count": options.instances, "kind": _Name(_device(manifest, native))}],
    }
    if batches(manifest):
        config["dynamic_batching"] = {"max_queue_delay_microseconds": round(options.delay_ms * 1000)}
    config["model_warmup"] = _warm_ups(manifest, inputs[0], config["max_batch_size"])
    # Triton's own backend does not read the manifest; the Python backend's runtime does.
    threads = options.threads or (manifest.engine.options.get("threads") if native else None)
    parameters = client_parameters(manifest)
    if threads is not None:
        parameters["intra_op_thread_count" if native else "threads"] = str(threads)
    config["parameters"] = [{"key": key, "value": {"string_value": text}} for key, text in parameters.items()]
    return protobuf_text(config)


def _device(manifest: Manifest, native: bool) -> str:
    """Return where Triton places the instances; a bundle in the Python backend opens its device itself."""
    if not native:
        return "KIND_CPU"
    engine = manifest.engine
    on_gpu = KINDS[engine.kind].needs_gpu or engine.options.get("provider", "cpu") != "cpu"
    return "KIND_GPU" if on_gpu else "KIND_CPU"


def _native_tensors(manifest: Manifest) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the graph's own input and outputs, with the batch if it is fixed."""
    spec = manifest.input
    batch = [] if spec.batch is None else [spec.batch]
    outputs = [_tensor(out.name, out.dtype, [*batch, *(int(side or 1) for side in out.shape[1:])])
               for out in manifest.outputs]  # fmt: skip
    return [_tensor(spec.name, spec.dtype, [*batch, *spec.sides])], outputs


def _runtime_tensors(manifest: Manifest) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tensors of `Runtime`: BGR images of any size, or of a sensor graph's, and the results."""
    spec = manifest.input
    size = [-1, -1] if manifest.sensor is None else [spec.height, spec.width]
    outputs = [
        _tensor(name, TABLE[task].dtype, [*size, *TABLE[task].components])
        for task, name in output_names(manifest).items()
    ]
    return [_tensor(IMAGE, "uint8", [*size, 3])], outputs


def _tensor(name: str, dtype: str, dims: list[int]) -> dict[str, Any]:
    return {"name": name, "data_type": _Name(_TYPES[dtype]), "dims": dims}


def _warm_ups(manifest: Manifest, tensor: dict[str, Any], largest: int) -> list[dict[str, Any]]:
    """Return black frames to run before the model is ready: the first run of a batch size is slower."""
    spec = manifest.input
    dims = [spec.height, spec.width, 3] if -1 in tensor["dims"] else tensor["dims"]
    entry = {"key": tensor["name"], "value": {"data_type": tensor["data_type"], "dims": dims, "zero_data": True}}
    return [{"name": f"batch {size}", "batch_size": size, "inputs": entry} for size in sorted({1, max(largest, 1)})]


def protobuf_text(message: Mapping[str, Any], indent: str = "") -> str:
    """Format `message` in protobuf's text format; mappings are messages, a list repeats its field."""
    lines: list[str] = []
    for field, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                lines += [f"{indent}{field} {{", protobuf_text(one, indent + "  "), f"{indent}}}"]
            elif isinstance(one, _Name):
                lines.append(f"{indent}{field}: {one}")
            else:
                lines.append(f"{indent}{field}: {json.dumps(one)}")
    return "\n".join(lines)
