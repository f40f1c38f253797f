"""Run an ONNX graph with ONNX Runtime."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from m2h_deploy.backends.base import Backend, BackendOptions, LayerTime, Run
from m2h_deploy.backends.inputs import InputArray
from m2h_deploy.backends.onnxruntime_gpu import preload_libraries, why_not_started
from m2h_deploy.backends.outputs import OutputArrays, Outputs, check_image, check_tensor
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.causes import failure, reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import library_path, scratch_folder

#: ONNX Runtime's name of a provider by its name in a bundle.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


#: Provider options that a bundle may set. Others could make the engine load arbitrary libraries and files.
_PROVIDER_OPTIONS = {"device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search", "use_tf32"}

#: Suffix by which the profiler marks the event of a node's computation.
_KERNEL = "_kernel_time"

#: NumPy's name of a type by that of ONNX Runtime.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
}


class OnnxRuntimeBackend(Backend):
    """One session with its output buffers. Not thread-safe."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        manifest = bundle.manifest
        session, provider = open_session(bundle, options)
        _check_session(session, bundle)
        self._session: Any = session
        self._binding: Any = session.io_binding()
        self.description = f"ONNX Runtime {ort.__version__}, {provider}"
        self.library = Path(ort.capi.onnxruntime_pybind11_state.__file__) if provider == "cpu" else None
        self._where = os.fspath(bundle.path)
        self._spec = manifest.input
        # ONNX Runtime copies host memory to a GPU when it is bound, and not when the session runs.
        self._image = InputArray(manifest.input.dtype, copied_by_binding=provider != "cpu")
        self._outputs = OutputArrays(
            {spec.name: tuple(int(side or 1) for side in spec.shape[1:]) for spec in manifest.outputs},
            {spec.name: np.dtype(spec.dtype) for spec in manifest.outputs},
        )

    def run(self, image: NDArray[np.float32], out: Outputs | None = None) -> Outputs:
        """Run the session on `image`, (N, 3, H, W) or raw pixels for a sensor graph; see `Backend.run`."""
        if self._session is None:
            raise M2HError(f"{self._where}: the engine is closed")
        check_image(image.shape, self._spec.batch, self._spec.sides, self._where)
        bind_outputs = self._outputs.take(len(image), out)
        try:
            self._image.give(image, self._bind_input)
            for name, array in self._outputs.raw.items() if bind_outputs else ():
                self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise M2HError(f"{self._where}: ONNX Runtime could not run: {reason(error)}") from None
        return self._outputs.finish()

    def _bind_input(self, image: NDArray[Any]) -> None:
        """Bind `image` to the session; on a CPU without a copy."""
        self._binding.bind_input(self._spec.name, "cpu", 0, image.dtype, image.shape, image.ctypes.data)

    def new_outputs(self, batch: int = 1) -> Outputs:
        """Allocate arrays for `out`, by output name."""
        return self._outputs.new(batch)

    def close(self) -> None:
        """Release the session and its buffers. Idempotent."""
        self._session = self._binding = None
        self._image.clear()
        self._outputs.clear()


def open_session(
    bundle: Bundle, options: BackendOptions, *, profile: str | None = None
) -> tuple[ort.InferenceSession, str]:
    """Open the bundle's engine as a session; also return the provider's short name.

    With `profile`, profiling events are written to a file with this prefix.

    Raises:
        M2HError: The provider is not available, the bundle sets a forbidden option, or ONNX Runtime rejects the graph.
    """
    engine = bundle.manifest.engine.options
    provider = options.device or str(engine.get("provider", "cpu"))
    if provider not in PROVIDERS:
        raise M2HError(f"{bundle.path}: unknown provider '{provider}': choose one of {', '.join(PROVIDERS)}")
    threads, provider_options = options.threads or engine.get("threads"), engine.get("provider_options", {})
    wanted = PROVIDERS[provider]
    # ONNX Runtime falls back to the CPU silently: check before and after the session is made.
    if wanted not in ort.get_available_providers():
        raise M2HError(
            f"{bundle.path} asks for the provider '{provider}', which this ONNX Runtime lacks (it has "
            f"{', '.join(name for name, full in PROVIDERS.items() if full in ort.get_available_providers())})"
        )
    if not isinstance(provider_options, dict):
        raise M2HError(f"{bundle.path}: engine.options.provider_options is not an object")
    refused = sorted(set(provider_options) - _PROVIDER_OPTIONS)
    if refused:
        raise M2HError(f"{bundle.path}: a bundle may not set the provider option '{refused[0]}'")
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 4  # errors are raised as exceptions
    session_options.inter_op_num_threads = 1
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = profile
    if provider == "cpu":
        # The plans that save allocations hold memory for longer than the graph needs it: without them m2h-small takes
        # 0.4 times the memory in the same time (benchmarks/engine_options.py).
        session_options.enable_mem_pattern = session_options.enable_mem_reuse = False
    else:
        preload_libraries()
    providers = [(wanted, {str(key): str(value) for key, value in provider_options.items()})]
    try:
        with library_path(bundle.engine_file) as file:
            session_options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
            session = ort.InferenceSession(file, session_options, providers=providers)
    except M2HError:
        raise
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise failure(error, f"ONNX Runtime cannot load {bundle.engine_file}") from None
    if session.get_providers()[0] != wanted:
        raise M2HError(f"{bundle.path}: the provider '{provider}' does not start here: {why_not_started(provider)}")
    return session, provider


def _sides(node: Any) -> tuple[int | None, ...]:
    return tuple(side if isinstance(side, int) else None for side in node.shape)


def _check_session(session: ort.InferenceSession, bundle: Bundle) -> None:
    """Raise M2HError if the graph's inputs and outputs differ from the manifest."""
    where, spec = os.fspath(bundle.path), bundle.manifest.input
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    expected = {spec.name: (spec.dtype, (spec.batch, *spec.sides))}
    for out in bundle.manifest.outputs:
        expected[out.name] = (out.dtype, (spec.batch, *out.shape[1:]))  # type: ignore[assignment]
    for name, tensor in expected.items():
        nodes = inputs if name == spec.name else outputs
        if name not in nodes:
            raise M2HError(f"{where}: the manifest names '{name}', and the engine has {', '.join(nodes)}")
        check_tensor(where, name, tensor, (_TYPES.get(nodes[name].type, nodes[name].type), _sides(nodes[name])))
    if len(inputs) > 1:
        raise M2HError(f"{where}: the engine takes {len(inputs)} inputs, expected one")


def profile(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Measure the layers of `runs` runs, from the JSON file of events that ONNX Runtime writes."""
    with scratch_folder("m2h-profile-") as folder:
        session, _ = open_session(bundle, options, profile=str(folder / "profile"))
        image = session.get_inputs()[0]
        shape = [side if isinstance(side, int) else 1 for side in image.shape]
        feed = {image.name: np.zeros(shape, np.dtype(_TYPES[image.type]))}
        try:
            for _ in range(runs):
                session.run(None, feed)
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise M2HError(f"{bundle.path}: cannot be profiled: {reason(error)}") from None
        return read_events(json.loads(Path(session.end_profiling()).read_bytes()))


def read_events(events: Iterable[dict[str, Any]]) -> list[Run]:
    """Return the layers of every run in a profile, in the order of execution."""
    runs: list[list[LayerTime]] = []
    ends: list[float] = []
    nodes = []
    for event in events:
        if event.get("name") == "model_run":
            ends.append(event["ts"] + event["dur"])
        elif event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            nodes.append(event)
    ends.sort()
    runs = [[] for _ in ends]
    place = 0
    for event in sorted(nodes, key=lambda event: event["ts"]):
        while event["ts"] > ends[place]:
            place += 1
        kind = str(event.get("args", {}).get("op_name", ""))
        runs[place].append(LayerTime(event["name"].removesuffix(_KERNEL), kind, event["dur"] / 1000))
    return [run for run in runs if run]
