"""m2h-deploy: the package for the device. Importing it never imports torch."""

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
from m2h_deploy.stream.stream import Stream
from m2h_deploy.version import __version__

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
