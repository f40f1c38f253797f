"""Samples: predicted and measured depth at the same pixels, from whatever source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError

#: Fewer units than this give no error of the mean that could be relied on.
FEWEST_UNITS = 3

#: Largest number of pixels of one frame that are used: neighbors are alike.
PIXELS = 4000


@dataclass(frozen=True, eq=False)
class Samples:
    """Predicted and measured depth, in meters, float64 (N,).

    Each belongs to a unit, of which all weigh the same: a frame, a point, or a part of a sequence. A unit is left out
    of a fit as a whole.
    """

    predicted: NDArray[np.float64]
    """Depth of the network without calibration."""
    measured: NDArray[np.float64]
    unit: NDArray[np.intp]
    """0 to `units` - 1."""
    frames: int
    left_out: int = 0
    """Number of pixels or points whose prediction is at the end of the network's range, where no factor helps."""

    @property
    def units(self) -> int:
        """Number of units."""
        return int(self.unit.max()) + 1 if self.unit.size else 0

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each sample, so that all units weigh the same."""
        return 1.0 / np.bincount(self.unit)[self.unit]

    def subset(self, keep: NDArray[np.bool_]) -> Samples:
        """Return the samples where `keep` is true, with their units numbered anew."""
        _, unit = np.unique(self.unit[keep], return_inverse=True)
        return Samples(self.predicted[keep], self.measured[keep], unit.astype(np.intp), self.frames, self.left_out)


class SampleList:
    """Collects samples, and leaves out what the network's range cuts off."""

    def __init__(self, depth_range: tuple[float, float]) -> None:
        # Resizing and float32 move a clamped value by a rounding error.
        self._near, self._far = depth_range[0] * 1.001, depth_range[1] * 0.999
        self._parts: list[tuple[NDArray[np.float64], NDArray[np.float64], int]] = []
        self._left_out = 0

    def add(self, predicted: NDArray[np.floating], measured: NDArray[np.floating], unit: int) -> None:
        """Add the samples of one unit, meters, of equal shape."""
        inside = (predicted > self._near) & (predicted < self._far)
        self._left_out += int(inside.size - np.count_nonzero(inside))
        if inside.any():
            self._parts.append((predicted[inside].astype(np.float64), measured[inside].astype(np.float64), unit))

    def samples(self, frames: int, what: str) -> Samples:
        """Return what was collected from `frames` frames; `what` names it in an error.

        Raises:
            M2HError: Fewer than three units have samples.
        """
        units = np.unique([unit for _, _, unit in self._parts])
        if len(units) < FEWEST_UNITS:
            cut = f" ({self._left_out} are beyond the network's range)" if self._left_out else ""
            raise M2HError(f"{what}: {len(units)} usable, at least {FEWEST_UNITS} are needed{cut}")
        numbers = [np.full(len(part[0]), np.searchsorted(units, part[2])) for part in self._parts]
        return Samples(
            np.concatenate([part[0] for part in self._parts]),
            np.concatenate([part[1] for part in self._parts]),
            np.concatenate(numbers).astype(np.intp),
            frames,
            self._left_out,
        )
