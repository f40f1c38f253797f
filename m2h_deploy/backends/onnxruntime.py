"""ONNX Runtime."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle import Bundle
from m2h_deploy.errors import M2HError

#: What a bundle calls a provider, and what ONNX Runtime does.
PROVIDERS = {"cpu": "CPUExecutionProvider"}


class OnnxRuntimeBackend:
    """One session with its output buffers. Not for two threads at once."""

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        manifest = bundle.manifest
        engine = manifest.engine.options
        provider = options.device or str(engine.get("provider", "cpu"))
        if provider not in PROVIDERS:
            raise M2HError(f"{bundle.path}: unknown provider '{provider}': choose one of {', '.join(PROVIDERS)}")
        self._session = _open_session(bundle, PROVIDERS[provider], options.threads or engine.get("threads"))
        self.description = f"ONNX Runtime {ort.__version__}, {provider}"
        self._input = manifest.input.name
        self._shapes = {spec.name: spec.shape for spec in manifest.outputs}
        self._outputs: dict[str, NDArray[np.float32]] = {}

    def run(self, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self._bind_outputs(len(image))
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, image)
        for name, array in self._outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        return self._outputs

    def _bind_outputs(self, batch: int) -> None:
        """Allocate once; again only when the batch size changes."""
        if self._outputs and len(next(iter(self._outputs.values()))) == batch:
            return
        self._outputs = {
            name: np.empty((batch, *(int(side or 0) for side in shape[1:])), np.float32)
            for name, shape in self._shapes.items()
        }

    def close(self) -> None:
        self._outputs = {}


def _open_session(bundle: Bundle, provider: str, threads: int | None) -> ort.InferenceSession:
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session_options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    session_options.inter_op_num_threads = 1
    try:
        session = ort.InferenceSession(os.fspath(bundle.engine_file), session_options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise M2HError(f"ONNX Runtime cannot load {bundle.engine_file}: {str(error).splitlines()[0]}") from None
    # ONNX Runtime falls back to the CPU without a word.
    if session.get_providers()[0] != provider:
        raise M2HError(f"{bundle.path} asks for {provider}, this ONNX Runtime has {', '.join(session.get_providers())}")
    return session
