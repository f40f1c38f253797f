"""Run an OpenVINO IR (`model.xml` and `model.bin`) on a CPU, or on another of OpenVINO's devices.

One infer request writes its outputs into numpy arrays and reads the caller's input without a copy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from m2h_deploy.backends.base import Backend, BackendOptions, LayerTime, Run
from m2h_deploy.backends.inputs import InputArray
from m2h_deploy.backends.outputs import OutputArrays, Outputs, check_tensor
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import library_path
from m2h_deploy.files.cache import user_cache_folder

#: Virtual devices, which choose among others and so are not listed as available.
_VIRTUAL_DEVICES = ("AUTO", "HETERO", "MULTI", "BATCH")

#: A type's name among the capabilities of a device.
_CAPABILITIES = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}


class OpenVINOBackend(Backend):
    """One compiled model with its output buffers. Not thread-safe.

    `options.device` is an OpenVINO device (CPU, GPU, NPU, AUTO). `options.extra` may hold `cache`: a folder for
    compiled models, True for the user's cache folder (see `cache_folder`), False for no cache. By default they are
    cached for every device except the CPU, where compiling takes about as long as reading the cache.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        self._compiled, device = compile_ir(bundle, options)
        wanted = wanted_precision(bundle)
        self._request: Any = self._compiled.create_infer_request()
        self._where = os.fspath(bundle.path)
        self._input, ports = _ports(self._compiled, bundle)
        self._ports = ports
        self._outputs = OutputArrays(
            {name: port.sides for name, port in ports.items()}, {name: port.dtype for name, port in ports.items()}
        )
        self._image = InputArray(self._input.dtype)
        self.precision = precision_used(self._compiled)
        note = f" ({wanted} is not available here)" if self.precision == "f32" != wanted else ""
        plugin = Path(ov.__file__).parent / "libs" / "libopenvino_intel_cpu_plugin.so"
        self.library = plugin if device == "CPU" and plugin.is_file() else None
        self.description = f"OpenVINO {ov.__version__.split('-')[0]}, {device}, {self.precision}{note}"

    def run(self, image: NDArray[np.float32], out: Outputs | None = None) -> Outputs:
        """Run the model on `image`, (N, 3, H, W) or raw pixels for a sensor graph; see `Backend.run`."""
        if self._request is None:
            raise M2HError(f"{self._where}: the engine is closed")
        if not self._input.takes(image.shape):
            raise M2HError(f"{self._where} takes images {self._input.words}, got an array of {image.shape}")
        self._image.give(image, self._bind_input)
        if self._outputs.take(len(image), out):
            for name, array in self._outputs.raw.items():
                self._request.set_tensor(self._ports[name].port, ov.Tensor(array, shared_memory=True))
        try:
            self._request.infer()
        except RuntimeError as error:
            raise M2HError(f"{self._where}: OpenVINO could not run: {reason(error)}") from None
        return self._outputs.finish()

    def _bind_input(self, image: NDArray[Any]) -> None:
        """Bind `image` to the request without a copy; rebinds only if the array changes."""
        self._request.set_input_tensor(ov.Tensor(image, shared_memory=True))

    def new_outputs(self, batch: int = 1) -> Outputs:
        """Allocate arrays for `out`, by output name."""
        return self._outputs.new(batch)

    def close(self) -> None:
        """Release the model and its buffers. Idempotent."""
        self._request = self._compiled = None
        self._image.clear()
        self._outputs.clear()


def compile_ir(bundle: Bundle, options: BackendOptions, properties: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Compile the bundle's IR; also return the device. `properties` override those of the bundle.

    Raises:
        M2HError: The device is not available, or OpenVINO rejects the IR.
    """
    engine = bundle.manifest.engine.options
    core = ov.Core()
    device = (options.device or str(engine.get("device", "CPU"))).upper()
    _check_device(core, device, bundle)
    model = read_ir(bundle, core)
    cache = cache_folder(options.extra.get("cache", device != "CPU"))
    precision = available_precision(core, device, wanted_precision(bundle))
    threads = options.threads or engine.get("threads")
    wanted = _properties(device, engine, precision, threads, cache) | (properties or {})
    try:
        return core.compile_model(model, device, wanted), device
    except RuntimeError as error:
        raise M2HError(f"OpenVINO cannot compile {bundle.engine_file} for {device}: {reason(error)}") from None


def _ports(compiled: Any, bundle: Bundle) -> tuple[_Port, dict[str, _Port]]:
    """Return the input and the outputs by name. Raises M2HError if the IR differs from the manifest."""
    spec = bundle.manifest.input
    try:
        image = _Port(compiled.input(spec.name))
        ports: dict[str, _Port] = {out.name: _Port(compiled.output(out.name)) for out in bundle.manifest.outputs}
    except RuntimeError as error:
        raise M2HError(f"{bundle.path}: the engine lacks a name of the manifest: {reason(error)}") from None
    where = os.fspath(bundle.path)
    # An FP16 bundle may have float32 inputs and outputs in the IR: the buffers use the types of the ports.
    check_tensor(where, spec.name, (image.dtype, (spec.batch, *spec.sides)), (image.dtype, image.all_sides))
    for out in bundle.manifest.outputs:
        port = ports[out.name]
        check_tensor(where, out.name, (port.dtype, (spec.batch, *out.shape[1:])), (port.dtype, port.all_sides))
    return image, ports


class _Port:
    """An input or output of a compiled model; only its batch may be dynamic."""

    def __init__(self, port: Any) -> None:
        self.port = port
        self.dtype = np.dtype(port.element_type.to_dtype())
        self.all_sides = tuple(None if side.is_dynamic else side.get_length() for side in port.partial_shape)
        self.sides = tuple(int(side or 1) for side in self.all_sides[1:])

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether an array of `shape` fits."""
        return len(shape) == len(self.all_sides) and all(
            side == given or (side is None and given) for side, given in zip(self.all_sides, shape, strict=True)
        )

    @property
    def words(self) -> str:
        """The shape as text, such as `(N, 3, 224, 224)`."""
        return "(" + ", ".join("N" if side is None else str(side) for side in self.all_sides) + ")"


def cache_folder(wanted: bool | str | os.PathLike[str]) -> Path | None:
    """Return the folder for compiled models: the caller's, the user's cache folder for True, None for False.

    None also if the user's cache folder cannot be written: a cache only saves time.
    """
    if wanted is False:
        return None
    return user_cache_folder("openvino") if wanted is True else Path(wanted)


def wanted_precision(bundle: Bundle) -> str:
    """Return the type that the bundle is to be computed in: f32, bf16 or f16; f32 by default."""
    return str(bundle.manifest.engine.options.get("inference_precision", "f32"))


def available_precision(core: Any, device: str, wanted: str) -> str:
    """Return `wanted` if the device computes in it, else f32.

    OpenVINO itself would choose another low precision for one that the processor lacks: bf16 for f16, which is eight
    times coarser than the precision that the bundle was verified in. A virtual device keeps its own rule.
    """
    try:
        capabilities = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError:
        return wanted
    return wanted if _CAPABILITIES.get(wanted) in capabilities else "f32"


def precision_used(compiled: Any) -> str:
    """Return the type that a compiled model computes in, as OpenVINO reports it: f32, bf16, f16, or `unknown`."""
    try:
        name = str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    except RuntimeError:
        return "unknown"
    return "unknown" if name in ("dynamic", "undefined") else name


def reason(error: Exception) -> str:
    """Return the line of an OpenVINO error that states the cause; the others name locations in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0]


def _check_device(core: Any, device: str, bundle: Bundle) -> None:
    present = core.available_devices
    kinds = {name.split(".")[0] for name in present}
    if device not in present and device not in kinds and device.split(":")[0] not in _VIRTUAL_DEVICES:
        raise M2HError(f"{bundle.path} asks for device {device}, OpenVINO finds {', '.join(present) or 'none'} here")


def read_ir(bundle: Bundle, core: Any = None) -> Any:
    """Read the bundle's IR as an OpenVINO model. Raises M2HError if it is damaged.

    The format is checked first: OpenVINO would try all formats that it supports on any other file.
    """
    file = bundle.engine_file
    weights = f"{file.stem}.bin"
    if weights not in bundle.manifest.files:
        raise M2HError(f"{bundle.path}: the weights {weights} are not among the manifest's files; build it again")
    with file.open("rb") as stream:
        head = stream.read(4096)
    if file.suffix != ".xml" or b"<net" not in head:
        raise M2HError(f"OpenVINO cannot read {file}: it is not an OpenVINO IR; build the bundle again")
    try:
        with library_path(file) as name:
            return (core or ov.Core()).read_model(name, os.fspath(Path(name).with_name(weights)))
    except RuntimeError as error:
        raise M2HError(f"OpenVINO cannot read {file}: {reason(error)}") from None


def _properties(
    device: str, engine: dict[str, Any], precision: str, threads: int | None, cache: Path | None
) -> dict[str, Any]:
    """Return OpenVINO's options: lowest latency for single frames, in the given precision."""
    properties: dict[str, Any] = {
        "PERFORMANCE_HINT": engine.get("performance_hint", "LATENCY"),
        "INFERENCE_PRECISION_HINT": precision,
    }
    if isinstance(threads, int) and threads > 0 and device == "CPU":
        properties["INFERENCE_NUM_THREADS"] = threads
    if cache is not None:
        properties["CACHE_DIR"] = os.fspath(cache)
    return properties


def profile(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Measure the layers of `runs` runs, from the counters that OpenVINO keeps of each."""
    compiled, _ = compile_ir(bundle, options, {"PERF_COUNT": True})
    try:
        request = compiled.create_infer_request()
        port = request.model_inputs[0]
        shape = [1 if side.is_dynamic else side.get_length() for side in port.partial_shape]
        request.set_input_tensor(ov.Tensor(np.zeros(shape, port.element_type.to_dtype())))
        result: list[Run] = []
        for _ in range(runs):
            request.infer()
            result.append(_layers(request.profiling_info))
    except RuntimeError as error:
        raise M2HError(f"{bundle.path}: cannot be profiled: {reason(error)}") from None
    return result


def _layers(info: Any) -> list[LayerTime]:
    """Return the executed nodes; nodes that were fused into others or folded took no time of their own."""
    return [
        LayerTime(node.node_name, node.node_type, node.real_time.total_seconds() * 1000)
        for node in info
        if node.status == node.Status.EXECUTED
    ]
