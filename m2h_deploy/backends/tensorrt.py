"""Run a plan of TensorRT or TensorRT-RTX on an NVIDIA GPU, with only numpy and cuda-python.

One stream, one execution context, persistent buffers on both sides, and a CUDA graph, so that a frame costs two copies
and one launch. Needs a GPU: the tests cover the checks that run without one; the rest follows NVIDIA's documentation
and has not been run on a GPU.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends.base import Backend, BackendOptions
from m2h_deploy.backends.buffers import Placement, TensorSpec, plan_buffers
from m2h_deploy.backends.cuda import Cuda
from m2h_deploy.backends.driver import missing_gpu
from m2h_deploy.backends.outputs import given_dtype
from m2h_deploy.backends.tensorrt_api import NAMES, load_tensorrt
from m2h_deploy.backends.tensorrt_log import listen
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import M2HError
from m2h_deploy.files.cache import read_checked, user_cache_folder, write_checked
from m2h_deploy.files.digests import file_sha256

#: Diagnostics of TensorRT-RTX's `get_engine_validity`, as text.
DIAGNOSTICS = {
    "VERSION_MISMATCH": "it was built by another version of TensorRT-RTX",
    "UNSUPPORTED_CC": "it was built for other GPUs",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "the file is damaged or not a plan",
    "CUDA_ERROR": "CUDA fails on this machine",
}


class TensorRTBackend(Backend):
    """One plan on one GPU. Not thread-safe.

    `options.extra` may hold `cuda_graph`: False launches every kernel separately, to measure the gain of the graph.
    """

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        manifest = bundle.manifest
        self._trt = load_tensorrt(manifest.engine.kind)
        logger, self._messages = listen(manifest.engine.kind)
        plan = _read_plan(bundle)
        check_versions(manifest, self._trt.__version__, os.fspath(bundle.path))
        libraries = check_plugins(bundle, options.plugins)
        runtime = self._trt.Runtime(logger)
        check_plan(self._trt, runtime, plan, bundle)
        self._cuda = Cuda(device_index(options.device))
        self._capture = bool(options.extra.get("cuda_graph", True))
        check_capability(manifest, self._cuda.capability(), os.fspath(bundle.path))
        _load_plugins(runtime, libraries)
        self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise M2HError(
                f"{bundle.path}: {NAMES[manifest.engine.kind]} refuses the plan ({self._said()}); build it again here"
            )
        _restore_weights(self._trt, self._engine, logger, bundle)
        self._runtime_cache: Any = None
        self._cache_file = cache_path(bundle, self._cuda.capability(), self._trt.__version__)
        self._context = self._make_context()
        self._specs = _tensor_specs(self._trt, self._engine)
        self._where = os.fspath(bundle.path)
        self._batch = 0
        self._graph: Any = None
        self._placements: tuple[Placement, ...] = ()
        self.description = f"{NAMES[manifest.engine.kind]} {self._trt.__version__}, GPU {self._cuda.capability()}"

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Run the plan on `image`, (N, 3, H, W) or raw pixels for a sensor graph; see `Backend.run`."""
        self._check_open()
        self._prepare(len(image))
        placement = self._placements[0]
        self._check_shape(image.shape, placement)
        np.copyto(self._host_view(placement), image, casting="same_kind")
        self._cuda.copy(self._device + placement.offset, self._host_address + placement.offset, placement.nbytes)
        self._execute()
        # Outputs follow the input in one contiguous block: a single copy transfers all of them.
        first = self._placements[1].offset
        self._cuda.copy(self._host_address + first, self._device + first, self._size - first)
        self._cuda.synchronize()
        views = {p.name: self._host_view(p) for p in self._placements[1:]}
        if out is None:
            return {name: view.astype(given_dtype(view.dtype), copy=False) for name, view in views.items()}
        for name, view in views.items():
            np.copyto(out[name], view, casting="same_kind")
        return out

    def new_outputs(self, batch: int = 1) -> dict[str, NDArray[np.float32]]:
        """Allocate arrays for `out`, by output name."""
        placements, _ = plan_buffers(self._specs, batch)
        return {p.name: np.empty(p.shape, given_dtype(p.dtype)) for p in placements if not p.is_input}

    def gpu_milliseconds(self, runs: int, batch: int = 1) -> list[float]:
        """Run the engine without copies on its current input; return the milliseconds of each run by CUDA events."""
        self._check_open()
        self._prepare(batch)
        return [self._cuda.milliseconds(self._execute) for _ in range(runs)]

    def profile(self, profiler: Any, runs: int) -> str:
        """Report the layers of `runs` runs to `profiler`, an IProfiler; return the engine inspector's JSON about them.

        Runs without a CUDA graph, which does not report layers. `profiler.end()` is called after each run.
        """
        self._check_open()
        self._prepare(1)
        self._context.profiler = profiler  # each run reports when it is enqueued
        for _ in range(runs):
            self._enqueue()
            self._cuda.synchronize()
            profiler.end()
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the engine, its context and all GPU memory. Idempotent."""
        self._context = self._engine = self._graph = None
        self._batch = 0
        self._cuda.close()

    def _check_open(self) -> None:
        if self._context is None:
            raise M2HError(f"{self._where}: the engine is closed")

    def _check_shape(self, shape: tuple[int, ...], placement: Placement) -> None:
        if tuple(shape) != placement.shape:
            raise M2HError(f"the engine takes {placement.shape}, got an array of {tuple(shape)}")

    def _prepare(self, batch: int) -> None:
        """Allocate and bind for a batch size, if it changed.

        The buffers of the previous size are freed only after the new ones are allocated: a failure leaves the engine
        unchanged.
        """
        self._cuda.use()
        if batch == self._batch:
            return
        placements, size = plan_buffers(self._specs, batch)
        image = placements[0]
        if not self._context.set_input_shape(image.name, image.shape):
            low, _, high = self._engine.get_tensor_profile_shape(image.name, 0)
            raise M2HError(f"the plan takes batches of {low[0]} to {high[0]}, got {batch}")
        before = self._cuda.detach()
        try:
            device, host = self._cuda.allocate(size), self._cuda.allocate_pinned(size)
        except M2HError:
            self._cuda.free(self._cuda.detach())
            self._cuda.attach(before)
            if self._placements:
                self._context.set_input_shape(self._placements[0].name, self._placements[0].shape)
            raise
        self._device, self._host, self._host_address = device, host, host.ctypes.data
        for placement in placements:
            self._context.set_tensor_address(placement.name, self._device + placement.offset)
        self._placements, self._size, self._batch, self._graph = placements, size, batch, None
        self._cuda.free(before)
        self._enqueue()  # lazy initialization must not be captured
        self._cuda.synchronize()
        if self._runtime_cache is not None:
            self._save_runtime_cache()
        elif self._capture:
            self._graph = self._cuda.capture(self._enqueue)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream):
            raise M2HError(f"TensorRT could not run the plan: {self._said()}")

    def _said(self) -> str:
        return self._messages.errors[-1] if self._messages.errors else "TensorRT gives no reason"

    def _execute(self) -> None:
        if self._graph is None:
            self._enqueue()  # TensorRT-RTX replays its own graph
        else:
            self._cuda.launch(self._graph)

    def _host_view(self, placement: Placement) -> NDArray[Any]:
        piece = self._host[placement.offset : placement.offset + placement.nbytes]
        return piece.view(placement.dtype).reshape(placement.shape)

    def _make_context(self) -> Any:
        """Make an execution context; on TensorRT-RTX with its own CUDA graph and the cached kernels."""
        if not hasattr(self._trt, "CudaGraphStrategy"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        strategies = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if self._capture else strategies.DISABLED
        self._runtime_cache = config.create_runtime_cache()
        kernels = None if self._cache_file is None else read_checked(self._cache_file)
        if kernels is not None:
            self._runtime_cache.deserialize(kernels)
        config.set_runtime_cache(self._runtime_cache)
        return self._engine.create_execution_context(config)

    def _save_runtime_cache(self) -> None:
        """Cache the compiled kernels for the next start, which is only slower if the folder cannot be written."""
        if self._cache_file is not None:
            write_checked(self._cache_file, bytes(memoryview(self._runtime_cache.serialize())))


def _read_plan(bundle: Bundle) -> bytes:
    try:
        return bundle.engine_file.read_bytes()
    except OSError as error:
        raise M2HError(f"cannot read {bundle.engine_file}: {error.strerror or error}") from None


def device_index(device: str | None) -> int:
    """Parse `0`, `cuda` or `cuda:1` to the index of a GPU; None is the first one. Raises M2HError on anything else."""
    index = (device or "0").removeprefix("cuda").removeprefix(":") or "0"
    if not index.isdecimal():
        raise M2HError(f"device '{device}': give a GPU as 0 or cuda:0")
    return int(index)


def check_versions(manifest: Manifest, installed: str, where: str) -> None:
    """Raise M2HError if the installed TensorRT cannot run a plan of the manifest's version."""
    engine = manifest.engine
    built, name = engine.version, NAMES[engine.kind]
    if built == installed:
        return
    newer = _version_numbers(installed) >= _version_numbers(built)
    same_major = built.split(".")[0] == installed.split(".")[0]
    if engine.options.get("version_compatible") and newer and same_major:
        return
    raise M2HError(
        f"{where} was built by {name} {built} and {installed} is installed: install {name} {built}, or build it again"
    )


def _version_numbers(version: str) -> list[int]:
    """Return the first three numbers of a version; `10.14rc1` counts as 10.14."""
    return [int(number) for number in re.findall(r"(?:^|\.)(\d+)", version)[:3]]


def check_plan(trt: Any, runtime: Any, plan: bytes, bundle: Bundle) -> None:
    """Raise M2HError, with the reason, if there is no GPU or the plan cannot run on this machine.

    TensorRT-RTX detects a damaged plan without a GPU; TensorRT needs one.
    """
    reasons: list[str] = []
    invalid = False
    if hasattr(runtime, "get_engine_validity"):
        validity, diagnostics = runtime.get_engine_validity(plan)
        reasons = words_for(trt, int(diagnostics))
        invalid = validity == trt.EngineValidity.INVALID
    if DIAGNOSTICS["MALFORMED_ENGINE"] in reasons:
        raise M2HError(f"{bundle.engine_file} cannot be run: {DIAGNOSTICS['MALFORMED_ENGINE']}; build it again")
    missing = missing_gpu()
    if missing is not None:
        raise M2HError(
            f"{bundle.path} needs an NVIDIA GPU ({targets_in_words(bundle.manifest)}) and there is none here "
            f"({missing}): copy the bundle to such a machine, or build one for this one with --engine onnxruntime"
        )
    if invalid:
        raise M2HError(
            f"{bundle.engine_file} cannot run here: {'; '.join(reasons) or 'it does not fit this machine'}; "
            "build it again for this machine"
        )


def words_for(trt: Any, diagnostics: int) -> list[str]:
    """Return TensorRT-RTX's diagnostic bits as phrases."""
    members = trt.EngineInvalidityDiagnostics.__members__
    return [DIAGNOSTICS.get(name, name.lower()) for name, bit in members.items() if diagnostics & int(bit)]


def targets_in_words(manifest: Manifest) -> str:
    """Describe the GPUs that a plan is for."""
    engine = manifest.engine
    if engine.targets:
        return f"compute capability {', '.join(engine.targets)}"
    return "compute capability 8.0 or later" if engine.kind == "tensorrt-rtx" else "the kind it was built on"


def check_capability(manifest: Manifest, capability: str, where: str) -> None:
    """Raise M2HError if the plan names targets and this GPU is not among them."""
    targets = manifest.engine.targets
    if targets and capability not in targets:
        raise M2HError(
            f"{where} was built for compute capability {', '.join(targets)} and this GPU has {capability}: "
            f"build it again with --target {capability}"
        )


def cache_path(bundle: Bundle, capability: str, version: str) -> Path | None:
    """Return the file for TensorRT-RTX's compiled kernels in the user's cache folder, named by plan, version and GPU.

    None if the folder cannot be written.
    """
    folder = user_cache_folder("tensorrt-rtx")
    digest = bundle.manifest.files[bundle.manifest.engine.file]
    return None if folder is None else folder / f"{digest}.{version}.sm{capability.replace('.', '')}.cache"


def check_plugins(bundle: Bundle, given: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the plug-in libraries to load before the plan: those of the manifest, from the caller's list.

    A bundle names its libraries with their sha256 but does not contain them, so that loading one is the caller's
    decision.

    Raises:
        M2HError: A required library is missing, or is not the one that the plan was built with.
    """
    wanted = bundle.manifest.engine.options.get("plugins") or []
    if not isinstance(wanted, list) or not all(_is_plugin(entry) for entry in wanted):
        raise M2HError(f"{bundle.path}: engine.options.plugins is not a list of names with sha256: build it again")
    missing = [str(library) for library in given if not library.is_file()]
    if missing:
        raise M2HError(f"no plug-in library at {missing[0]}")
    digests = {file_sha256(library): library for library in given}
    for entry in wanted:
        name = entry["name"]
        if entry["sha256"] not in digests:
            other = any(library.name == name for library in given)
            what = f"the {name} given is not the one it was built with" if other else f"it needs the plug-in {name}"
            raise M2HError(
                f"{bundle.path}: {what} (sha256 {entry['sha256'][:16]}...); a bundle contains no code: give the "
                f"library to Runtime.load(..., plugins=['{name}']) if you trust it"
            )
    return tuple(digests[entry["sha256"]] for entry in wanted)


def _is_plugin(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "sha256"))


def _load_plugins(runtime: Any, libraries: tuple[Path, ...]) -> None:
    for library in libraries:
        if runtime.get_plugin_registry().load_library(os.fspath(library)) is None:
            raise M2HError(f"{library} is not a TensorRT plug-in library for this version")


def _restore_weights(trt: Any, engine: Any, logger: Any, bundle: Bundle) -> None:
    """Restore the weights of a plan that was built without them."""
    name = bundle.manifest.engine.options.get("weights")
    if name is None:
        return
    if not isinstance(name, str) or name not in bundle.manifest.files:
        raise M2HError(f"{bundle.path}: the plan's weights {name} are not among the manifest's files")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(os.fspath(bundle.path / name)) or not refitter.refit_cuda_engine():
        raise M2HError(f"{bundle.path}: the weights in {name} do not fit the plan; build it again")


def _tensor_specs(trt: Any, engine: Any) -> tuple[TensorSpec, ...]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return tuple(
        TensorSpec(
            name,
            tuple(engine.get_tensor_shape(name)),
            np.dtype(trt.nptype(engine.get_tensor_dtype(name))),
            engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        )
        for name in names
    )
