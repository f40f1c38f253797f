"""m2h-deploy: the part that ships to the device. Importing it never imports torch."""

__version__ = "0.1.0"

from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.postprocess import Prediction
from m2h_deploy.runtime import Runtime

__all__ = ["CheckFailed", "M2HError", "Prediction", "Runtime", "__version__"]
