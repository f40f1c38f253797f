"""Backends run an engine file. One file an engine kind, imported only when a bundle asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import BundleError, M2HError, engine_error, missing_extra

#: Engine kinds and the extra that installs what runs them.
EXTRAS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}


#: More threads than this are a mistake, and starting them can take a machine down.
MAX_THREADS = 1024


@dataclass(frozen=True)
class BackendOptions:
    """How to run a bundle on this machine; None leaves a choice to the manifest or the engine."""

    threads: int | None = None
    device: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries that the caller allows to be loaded; a bundle only names the ones it needs."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise M2HError(f"threads {self.threads}: must be between 1 and {MAX_THREADS}")


class Backend(Protocol):
    """A loaded engine. One thread at a time."""

    description: str
    """Engine, version and device in words, for logs."""

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """(N, 3, H, W) float32 to the outputs by name, float32.

        Written to the arrays of `out` (`new_outputs` makes them), and else to arrays that the next call overwrites.
        Raises M2HError on an image that the engine does not take, on an engine that fails, and after `close`.
        """
        ...

    def new_outputs(self, batch: int = 1) -> dict[str, NDArray[np.float32]]:
        """New arrays for `out`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. Harmless to call twice."""
        ...


def open_backend(bundle: Bundle, options: BackendOptions) -> Backend:
    """Open the backend that the manifest names.

    Raises MissingExtra when what runs it is not installed here, and EngineError when it does not take the engine.
    """
    kind = bundle.manifest.engine.kind
    if kind not in EXTRAS:
        raise BundleError(f"{bundle.path}: unknown engine kind '{kind}': known are {', '.join(EXTRAS)}")
    try:
        if kind == "onnxruntime":
            from m2h_deploy.backends.onnxruntime import OnnxRuntimeBackend

            return OnnxRuntimeBackend(bundle, options)
        if kind == "openvino":
            from m2h_deploy.backends.openvino import OpenVINOBackend

            return OpenVINOBackend(bundle, options)
        if kind in ("tensorrt", "tensorrt-rtx"):
            from m2h_deploy.backends.tensorrt import TensorRTBackend

            return TensorRTBackend(bundle, options)
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), EXTRAS[kind], f"{bundle.path} (engine {kind})") from None
    except M2HError as error:
        raise engine_error(error) from None
    raise BundleError(f"{bundle.path}: engine kind '{kind}' cannot be run by this version")
