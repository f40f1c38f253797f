"""ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle import Bundle
from m2h_deploy.errors import M2HError

#: What a bundle calls a provider, and what ONNX Runtime does.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}


#: Provider options that a bundle may set. Others name libraries and files to load, which a bundle must not.
_PROVIDER_OPTIONS = {"device_id", "gpu_mem_limit", "arena_extend_strategy", "cudnn_conv_algo_search", "use_tf32"}


class OnnxRuntimeBackend:
    """One session with its output buffers. Not for two threads at once."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        manifest = bundle.manifest
        engine = manifest.engine.options
        provider = options.device or str(engine.get("provider", "cpu"))
        if provider not in PROVIDERS:
            raise M2HError(f"{bundle.path}: unknown provider '{provider}': choose one of {', '.join(PROVIDERS)}")
        threads = options.threads or engine.get("threads")
        self._session = _open_session(bundle, provider, threads, engine.get("provider_options", {}))
        self.description = f"ONNX Runtime {ort.__version__}, {provider}"
        self._input = manifest.input.name
        self._input_dtype = np.dtype(manifest.input.dtype)
        self._specs = manifest.outputs
        self._outputs: dict[str, NDArray] = {}

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self._bind_outputs(len(image))
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, image.astype(self._input_dtype, copy=False))
        for name, array in self._outputs.items():
            binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return {name: array.astype(np.float32, copy=False) for name, array in self._outputs.items()}

    def _bind_outputs(self, batch: int) -> None:
        """Allocate once; again only when the batch size changes."""
        if self._outputs and len(next(iter(self._outputs.values()))) == batch:
            return
        self._outputs = {
            spec.name: np.empty((batch, *(int(side or 0) for side in spec.shape[1:])), spec.dtype)
            for spec in self._specs
        }

    def close(self) -> None:
        self._outputs = {}


def _open_session(
    bundle: Bundle, provider: str, threads: int | None, provider_options: dict[str, Any]
) -> ort.InferenceSession:
    wanted = PROVIDERS[provider]
    # ONNX Runtime falls back to the CPU without a word: ask before, and look again afterwards.
    if wanted not in ort.get_available_providers():
        raise M2HError(
            f"{bundle.path} asks for the provider '{provider}', which this ONNX Runtime lacks (it has "
            f"{', '.join(name for name, full in PROVIDERS.items() if full in ort.get_available_providers())})"
        )
    refused = sorted(set(provider_options) - _PROVIDER_OPTIONS)
    if refused:
        raise M2HError(f"{bundle.path}: the provider option '{refused[0]}' is not one that a bundle may set")
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session_options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    session_options.inter_op_num_threads = 1
    providers = [(wanted, {str(key): str(value) for key, value in provider_options.items()})]
    try:
        session = ort.InferenceSession(os.fspath(bundle.engine_file), session_options, providers=providers)
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise M2HError(f"ONNX Runtime cannot load {bundle.engine_file}: {str(error).splitlines()[0]}") from None
    if session.get_providers()[0] != wanted:
        raise M2HError(f"{bundle.path}: the provider '{provider}' does not start on this machine")
    return session
