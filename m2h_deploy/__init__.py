"""m2h-deploy: the part that ships to the device. Importing it never imports torch."""

__version__ = "0.1.0"

from m2h_deploy.bundle import Bundle, load_bundle
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.postprocess import Prediction
from m2h_deploy.runtime import Runtime
from m2h_deploy.stream import Stream

__all__ = [
    "Bundle",
    "CheckFailed",
    "M2HError",
    "Prediction",
    "Runtime",
    "Stream",
    "__version__",
    "load_bundle",
]
