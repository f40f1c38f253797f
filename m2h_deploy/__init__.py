"""m2h-deploy: the package for the device. Importing it never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from m2h_deploy.bundle.folder import Bundle, load_bundle
from m2h_deploy.errors import (
    BundleError,
    CheckFailed,
    EngineError,
    EngineTimeout,
    ImageError,
    M2HError,
    MissingExtra,
)
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.version import __version__

if TYPE_CHECKING:
    from m2h_deploy.stream.stream import Stream

__all__ = [
    "Bundle",
    "BundleError",
    "CheckFailed",
    "EngineError",
    "EngineTimeout",
    "ImageError",
    "M2HError",
    "MissingExtra",
    "Prediction",
    "Runtime",
    "Stream",
    "__version__",
    "load_bundle",
]


def __getattr__(name: str) -> Any:
    """Import `Stream` on first use: it needs every kind of source, for which a `Runtime` should not wait."""
    if name != "Stream":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from m2h_deploy.stream.stream import Stream

    return Stream
