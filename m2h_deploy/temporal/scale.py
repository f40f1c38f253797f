"""Scale of a frame's depth relative to the past, filtered over time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: Pixels that the scale is measured on: every seventh is enough for a median, and coprime to common widths.
_STEP = 7

#: Fewest pixels to measure the scale on, after `_STEP`.
_FEWEST = 200

#: Depths that differ by more than this factor are of different surfaces.
_FACTOR = 1.5

#: A cut: less than this share of the pixels that the past predicts agrees with the present.
_AGREES = 0.3


class ScaleFilter:
    """Estimates how much larger a frame's depth is than the past's, as a natural logarithm.

    A network that sees one image cannot know the scale exactly, and its errors differ from frame to frame. The median
    of depth over warped past depth measures that, and an exponential filter removes what is left of the noise.
    """

    def __init__(self, alpha: float) -> None:
        """Make a filter that weighs a new measurement with `alpha`, 0 to 1."""
        self._alpha = alpha
        self.value = 0.0
        """Filtered logarithm of present depth by past depth."""

    def reset(self) -> None:
        """Forget the past."""
        self.value = 0.0

    def update(self, depth: Array, past: Array) -> bool:
        """Measure the scale of one frame.

        Args:
            depth: present depth, (H, W), meters, 0 where unknown.
            past: past depth in the present camera, (H, W), meters, 0 where unknown.

        Returns:
            Whether past and present show the same place; False after a cut.
        """
        new, old = depth.reshape(-1)[::_STEP], past.reshape(-1)[::_STEP]
        both = (new > 0) & (old > 0)
        if np.count_nonzero(both) < _FEWEST:
            return False
        ratios = new[both] / old[both]
        same = (ratios < _FACTOR) & (ratios > 1 / _FACTOR)
        if np.count_nonzero(same) < _AGREES * len(ratios):
            return False
        self.value += self._alpha * (float(np.log(np.median(ratios[same]))) - self.value)
        return True
