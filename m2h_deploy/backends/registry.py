"""The engine kinds that a device can open, one entry each.

An entry names functions by their module, so that a device needs only the packages of its own engine.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from m2h_deploy.backends.base import Backend, BackendOptions, Run
from m2h_deploy.backends.driver import extra_here
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import BundleError, M2HError, engine_error, missing_extra


@dataclass(frozen=True)
class TritonBackend:
    """The backend of Triton that runs engine files of one kind."""

    name: str
    file: str
    """Name of the engine file in a model repository."""
    onnx: bool = False
    """True if the engine file is an ONNX graph: a depth calibration can be added to it."""


@dataclass(frozen=True)
class CppEngine:
    """What building libm2h for one engine kind requires."""

    needs: str
    """Markdown: the engine's C++ libraries, and the CMake options that name them."""
    cmake: str = "3.16"
    """Lowest version of CMake."""


@dataclass(frozen=True)
class EngineKind:
    """How to run engines of one kind. Functions are written as `module:name`, below `m2h_deploy.backends`."""

    name: str
    extra: str
    """The extra of this project that installs the engine."""
    module: str
    """The engine's Python module."""
    distributions: tuple[str, ...]
    """Python packages that carry the module; the first that is installed counts."""
    open: str
    """(Bundle, BackendOptions) -> Backend."""
    profile: str
    """(Bundle, BackendOptions, number of runs) -> the layers of every run."""
    needs_gpu: bool = False
    """Whether it runs only on NVIDIA GPUs."""
    triton: TritonBackend | None = None
    """None: Triton has no backend for it."""
    cpp: CppEngine | None = None
    """None: libm2h does not run it."""


KINDS = {
    kind.name: kind
    for kind in (
        EngineKind(
            "onnxruntime",
            extra="onnxruntime",
            module="onnxruntime",
            distributions=("onnxruntime", "onnxruntime-gpu"),
            open="onnxruntime:OnnxRuntimeBackend",
            profile="onnxruntime:profile",
            triton=TritonBackend("onnxruntime", "model.onnx", onnx=True),
            cpp=CppEngine(
                "ONNX Runtime: its release archive with `-DONNXRUNTIME_ROOT=...`, or Debian's libonnxruntime-dev"
            ),
        ),
        EngineKind(
            "openvino",
            extra="openvino",
            module="openvino",
            distributions=("openvino",),
            open="openvino:OpenVINOBackend",
            profile="openvino:profile",
            cpp=CppEngine(
                "OpenVINO: its archive or apt package with `-DOpenVINO_DIR=.../runtime/cmake`, or `pip install "
                "openvino` and `-DM2H_PYTHON=$(which python3)`"
            ),
        ),
        EngineKind(
            "tensorrt",
            extra="tensorrt",
            module="tensorrt",
            distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
            open="tensorrt:TensorRTBackend",
            profile="tensorrt_profile:profile",
            needs_gpu=True,
            triton=TritonBackend("tensorrt", "model.plan"),
            # CMake 3.17 is the first that finds CUDA.
            cpp=CppEngine("TensorRT and CUDA: `-DTENSORRT_ROOT=...`", cmake="3.17"),
        ),
        EngineKind(
            "tensorrt-rtx",
            extra="tensorrt-rtx",
            module="tensorrt_rtx",
            distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
            open="tensorrt:TensorRTBackend",
            profile="tensorrt_profile:profile",
            needs_gpu=True,
            cpp=CppEngine(
                "TensorRT-RTX and CUDA: `-DTENSORRT_ROOT=... -DM2H_TENSORRT_FLAVOR=tensorrt-rtx`", cmake="3.17"
            ),
        ),
    )
}


def engine_kind(bundle: Bundle) -> EngineKind:
    """Return the entry of a bundle's engine. Raise BundleError for an unknown kind."""
    kind = bundle.manifest.engine.kind
    if kind not in KINDS:
        raise BundleError(f"{bundle.path}: unknown engine kind '{kind}': known are {', '.join(KINDS)}")
    return KINDS[kind]


def import_engine(manifest: Manifest) -> None:
    """Import the packages of a manifest's engine ahead of `open_backend`, which reports what is missing."""
    kind = KINDS.get(manifest.engine.kind)
    if kind is not None:
        # A broken package raises anything; `open_backend` imports it again, after the checksums were verified.
        with suppress(Exception):
            importlib.import_module(f"m2h_deploy.backends.{kind.open.partition(':')[0]}")


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
    kind = engine_kind(bundle)
    module, _, name = getattr(kind, role).partition(":")
    try:
        return getattr(importlib.import_module(f"m2h_deploy.backends.{module}"), name)(bundle, *arguments)
    except ImportError as error:
        needing = f"{bundle.path} (engine {kind.name})"
        raise missing_extra(str(error.name), extra_here(kind.extra), needing, error=error) from None
    except M2HError as error:
        raise engine_error(error) from None
