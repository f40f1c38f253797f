"""ONNX Runtime on an NVIDIA GPU: load the libraries of its providers, and find out why one does not start."""

from __future__ import annotations

import contextlib
import ctypes
import io
from pathlib import Path

import onnxruntime as ort

from m2h_deploy.backends.driver import missing_gpu
from m2h_deploy.errors import first_line

#: The library of each provider, beside ONNX Runtime's own.
_LIBRARIES = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
    "nv-tensorrt-rtx": "libonnxruntime_providers_nv_tensorrt_rtx.so",
}


def preload_libraries() -> None:
    """Load CUDA and cuDNN from their Python packages: the system's loader does not find them there."""
    if hasattr(ort, "preload_dlls"):  # from ONNX Runtime 1.21 on
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


def why_not_started(provider: str) -> str:
    """Return why a session fell back to the CPU: ONNX Runtime writes the reason to its log only."""
    folder = Path(ort.__file__).parent / "capi"
    library = folder / _LIBRARIES[provider]
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return first_line(error)
    missing = missing_gpu(bindings=False)
    return "ONNX Runtime gives no reason" if missing is None else str(missing)
