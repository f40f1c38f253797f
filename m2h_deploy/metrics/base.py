"""Base class of the four task metrics: a vector of sums per frame, from whose total the figures are computed.

`frame_state` reduces a frame to one float64 vector. `update` adds that vector, `merge` adds two totals, `compute` turns
the total into figures. Streaming, merging across workers and a bootstrap over frames (add a resampled set of frame
states, call `compute_from`) therefore use the same arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import M2HError

State = npt.NDArray[np.float64]

_COARSE = 2.0**22
_FINE = 2.0**63


def split(sums: npt.ArrayLike) -> State:
    """Split each sum into a coarse and a fine part, so that adding frames is exact.

    The coarse parts are multiples of 2^-22 and add without rounding up to 2^31 (the 654 NYUv2 test frames at a mean of
    10 per pixel). The fine parts, the remainders, are multiples of 2^-63 and add without rounding over 8192 frames. A
    total therefore has the same bits in any order, batching or partition of the frames. Beyond these limits it is as
    accurate as any float64 sum.

    Args:
        sums: n sums of one frame.

    Returns:
        float64 (2 * n,), the coarse parts, then the fine parts.
    """
    values = np.asarray(sums, np.float64)
    coarse = np.rint(values * _COARSE) / _COARSE
    fine = np.rint((values - coarse) * _FINE) / _FINE
    return np.concatenate([coarse, fine])


def joined(parts: State) -> State:
    """Join the parts that `split` made: float64 (2 * n,) to (n,)."""
    coarse, fine = parts.reshape(2, -1)
    return coarse + fine


class Metric(ABC):
    """Streaming metric over frames; its memory use does not depend on the number of frames."""

    #: Name of the task, for error messages.
    task: str
    #: Unit of each figure that `compute` returns.
    units: ClassVar[dict[str, str]]
    #: Dimensions of one frame's target: 2 for (H, W), 3 for (H, W, C).
    frame_ndim: int = 2

    def __init__(self) -> None:
        self.state: State = np.zeros(self.state_size)

    @property
    @abstractmethod
    def state_size(self) -> int:
        """Length of the state vector."""

    @property
    def settings(self) -> Hashable:
        """Settings that two metrics must have in common for their states to be added."""
        return ()

    @abstractmethod
    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """Compute the sums of one frame.

        Args:
            prediction: the network's output for the frame; shape, type and range depend on the task.
            target: the label, of the same shape.

        Returns:
            float64 (state_size,).

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept.
        """

    @abstractmethod
    def compute_from(self, state: State) -> dict[str, float]:
        """Compute the figures from a sum of frame states; NaN where nothing was counted.

        Args:
            state: float64 (state_size,), the sum of any number of frame states.

        Returns:
            Figures by name; see `units`.
        """

    def update(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> None:
        """Add one frame, or a batch of frames stacked along a new first axis.

        Args:
            prediction: as for `frame_state`, or (N, ...) for a batch.
            target: as for `frame_state`, or (N, ...) for a batch.

        Raises:
            M2HError: a shape, dtype or value that the metric does not accept; nothing is added.
        """
        frames, targets = np.asarray(prediction), np.asarray(target)
        if targets.ndim == self.frame_ndim:
            self.state = self.state + self.frame_state(frames, targets)
            return
        if targets.ndim != self.frame_ndim + 1 or frames.shape[:1] != targets.shape[:1]:
            self._shapes(frames, targets)
        total = self.state
        for one, truth in zip(frames, targets, strict=True):
            total = total + self.frame_state(one, truth)
        self.state = total

    def merge(self, other: Metric) -> None:
        """Add the frames of another metric of the same class and settings.

        Raises:
            M2HError: the other metric has another class or other settings.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            raise M2HError(
                f"{self.task} metric: cannot merge {type(other).__name__}{other.settings} into "
                f"{type(self).__name__}{self.settings}; make both with the same arguments"
            )
        self.state = self.state + other.state

    def compute(self) -> dict[str, float]:
        """Compute the figures of all frames added so far; NaN where nothing was counted."""
        return self.compute_from(self.state)

    def _shapes(self, prediction: npt.NDArray, target: npt.NDArray) -> None:
        raise M2HError(
            f"{self.task} metric: prediction {prediction.shape} and target {target.shape} are not one frame "
            f"{'(H, W)' if self.frame_ndim == 2 else '(H, W, 3)'} or one batch of such frames; reshape them"
        )

    def _frame(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
        """Return both as arrays of one frame, of the same non-empty shape; raise M2HError otherwise."""
        one, truth = np.asarray(prediction), np.asarray(target)
        channels = truth.shape[2:] == ((3,) if self.frame_ndim == 3 else ())
        if one.shape != truth.shape or truth.ndim != self.frame_ndim or not channels or truth.size == 0:
            self._shapes(one, truth)
        return one, truth

    def _float(self, values: npt.NDArray, name: str) -> npt.NDArray[np.float64]:
        """Convert finite floating-point values to float64; raise M2HError for other values."""
        if not np.issubdtype(values.dtype, np.floating):
            raise M2HError(f"{self.task} metric: {name} has dtype {values.dtype}, needs a floating-point one")
        wide = values.astype(np.float64)
        if not np.isfinite(wide).all():
            bad = int(np.count_nonzero(~np.isfinite(wide)))
            raise M2HError(f"{self.task} metric: {name} has {bad} nan or infinite values; mark unknown ones as 0")
        return wide


def ratio(numerator: float, denominator: float) -> float:
    """Divide, with NaN for a denominator of 0."""
    return float(numerator / denominator) if denominator else float("nan")
