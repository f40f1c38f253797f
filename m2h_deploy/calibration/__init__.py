"""Depth calibration: correct the depth of an engine for one camera, from few measured distances."""

from m2h_deploy.calibration.calibrate import calibrate
from m2h_deploy.calibration.result import CalibrateResult

__all__ = ["CalibrateResult", "calibrate"]
