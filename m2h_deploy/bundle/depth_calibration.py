"""Correction of a network's depth to one camera: the record in the manifest, and its arithmetic."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from m2h_deploy.bundle.record import Record

#: Limits that float32 holds with ease.
Scale = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
Offset = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


#: Origin of a calibration. frames: measured depth. points: single known distances. sequence: the camera's own motion.
#: focal: the camera's focal length alone. manual: written by hand.
Source = Literal["frames", "points", "sequence", "focal", "manual"]


class CalibrationEvidence(Record):
    """Data of a fitted calibration, and its cross-validated error before and after."""

    frames: Annotated[int, Field(ge=1)]
    values: Annotated[int, Field(ge=1)]
    """Number of pixels or points."""
    folds: Annotated[int, Field(ge=2)]
    abs_rel_before: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Mean absolute relative error, cross-validated, as a share of the depth."""
    abs_rel_after: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DepthCalibration(Record):
    """Depth of this camera in meters: `scale` times the network's depth, clamped to `depth_range`, plus `offset`.

    A result below 0 is 0. The engine does not apply it; whoever runs the engine does.
    """

    scale: Scale
    offset: Offset = 0.0
    """Meters."""
    source: Source = "manual"
    evidence: CalibrationEvidence | None = None
    """None for one that was not fitted."""

    @property
    def text(self) -> str:
        """The correction as a formula, such as `depth x 0.782 - 0.05 m`."""
        if not self.offset:
            return f"depth x {self.scale:.4g}"
        return f"depth x {self.scale:.4g} {'+' if self.offset > 0 else '-'} {abs(self.offset):.3g} m"

    def range_of(self, depth_range: tuple[float, float]) -> tuple[float, float]:
        """Return the range of calibrated depth, meters, for a network's range; both are 0 if no depth is above 0."""
        near, far = (max(0.0, self.scale * limit + self.offset) for limit in depth_range)
        return near, far

    def apply(self, depth: NDArray[Any]) -> None:
        """Correct float32 depth of any shape, in meters and already clamped, in place."""
        np.multiply(depth, np.float32(self.scale), out=depth)
        if self.offset:
            np.add(depth, np.float32(self.offset), out=depth)
            if self.offset < 0:
                np.maximum(depth, np.float32(0), out=depth)
