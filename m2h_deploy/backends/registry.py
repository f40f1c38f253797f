"""The engine kinds that a device can open, one entry each.

An entry names functions by their module, so that a device needs only the packages of its own engine.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from m2h_deploy.backends.base import Backend, BackendOptions, Run
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import BundleError, M2HError, engine_error, missing_extra


@dataclass(frozen=True)
class EngineKind:
    """How to run engines of one kind. Functions are written as `module:name`, below `m2h_deploy.backends`."""

    name: str
    extra: str
    """The extra of this project that installs the engine."""
    open: str
    """(Bundle, BackendOptions) -> Backend."""
    profile: str
    """(Bundle, BackendOptions, number of runs) -> the layers of every run."""
    needs_gpu: bool = False
    """Whether it runs only on NVIDIA GPUs."""


KINDS = {
    kind.name: kind
    for kind in (
        EngineKind("onnxruntime", "onnxruntime", "onnxruntime:OnnxRuntimeBackend", "onnxruntime:profile"),
        EngineKind("openvino", "openvino", "openvino:OpenVINOBackend", "openvino:profile"),
        EngineKind("tensorrt", "tensorrt", "tensorrt:TensorRTBackend", "tensorrt_profile:profile", needs_gpu=True),
        EngineKind(
            "tensorrt-rtx", "tensorrt-rtx", "tensorrt:TensorRTBackend", "tensorrt_profile:profile", needs_gpu=True
        ),
    )
}


def open_backend(bundle: Bundle, options: BackendOptions) -> Backend:
    """Open the engine of a bundle.

    Raises:
        MissingExtra: The packages of the engine are not installed.
        EngineError: The engine cannot be opened on this machine.
    """
    backend: Backend = _call("open", bundle, options)
    return backend


def profile_engine(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Measure the layers of `runs` runs on an image of zeros. Raises M2HError if the engine cannot run."""
    layers: list[Run] = _call("profile", bundle, options, runs)
    return layers


def _call(role: Literal["open", "profile"], bundle: Bundle, *arguments: Any) -> Any:
    kind = bundle.manifest.engine.kind
    if kind not in KINDS:
        raise BundleError(f"{bundle.path}: unknown engine kind '{kind}': known are {', '.join(KINDS)}")
    module, _, name = getattr(KINDS[kind], role).partition(":")
    try:
        return getattr(importlib.import_module(f"m2h_deploy.backends.{module}"), name)(bundle, *arguments)
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), KINDS[kind].extra, f"{bundle.path} (engine {kind})") from None
    except M2HError as error:
        raise engine_error(error) from None
