"""What the four task metrics share: a small vector of sums per frame, added up, from which the figures follow.

Everything a metric knows about a frame is one float64 vector, `frame_state`. `update` adds that vector,
`merge` adds two totals, `compute` turns the total into figures. So streaming, merging across workers and a
bootstrap over frames (add a resampled set of frame states, call `compute_from`) are the same arithmetic.
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
    """A frame's sums, each as a coarse and a fine part, so that adding frames is exact: float64 (2 * n,).

    The coarse parts are multiples of 2^-22 and add without rounding up to 2^31 (the 654 NYUv2 test frames
    at a mean of 10 per pixel); the fine parts, the rest, are multiples of 2^-63 and add without rounding over
    8192 frames. So a total has the same bits in whatever order, batching or split it is added. Beyond these
    limits it is as good as any float64 sum.
    """
    values = np.asarray(sums, np.float64)
    coarse = np.rint(values * _COARSE) / _COARSE
    fine = np.rint((values - coarse) * _FINE) / _FINE
    return np.concatenate([coarse, fine])


def joined(parts: State) -> State:
    """The sums that `split` parted, float64 (n,)."""
    coarse, fine = parts.reshape(2, -1)
    return coarse + fine


class Metric(ABC):
    """A streaming metric over frames; memory does not grow with the number of frames."""

    #: Name of the task, for error lines.
    task: str
    #: Unit of each figure that `compute` gives.
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
        """What two metrics must have in common for their states to be added."""
        return ()

    @abstractmethod
    def frame_state(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> State:
        """The sums of one frame, float64 (state_size,).

        Raises:
            M2HError: a shape, dtype or value that the metric cannot take.
        """

    @abstractmethod
    def compute_from(self, state: State) -> dict[str, float]:
        """The figures of any sum of frame states; nan where nothing was counted."""

    def update(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> None:
        """Add one frame, or a batch of frames stacked along a new first axis.

        Raises:
            M2HError: a shape, dtype or value that the metric cannot take; then nothing is added.
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
        """Add what another metric of the same kind and settings has seen.

        Raises:
            M2HError: the other metric is of another kind or has other settings.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            raise M2HError(
                f"{self.task} metric: cannot merge {type(other).__name__}{other.settings} into "
                f"{type(self).__name__}{self.settings}; make both with the same arguments"
            )
        self.state = self.state + other.state

    def compute(self) -> dict[str, float]:
        """The figures of everything added so far; nan where nothing was counted."""
        return self.compute_from(self.state)

    def _shapes(self, prediction: npt.NDArray, target: npt.NDArray) -> None:
        raise M2HError(
            f"{self.task} metric: prediction {prediction.shape} and target {target.shape} are not one frame "
            f"{'(H, W)' if self.frame_ndim == 2 else '(H, W, 3)'} or one batch of such frames; reshape them"
        )

    def _frame(self, prediction: npt.ArrayLike, target: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
        """Both as arrays of one frame, of the same non-empty shape."""
        one, truth = np.asarray(prediction), np.asarray(target)
        channels = truth.shape[2:] == ((3,) if self.frame_ndim == 3 else ())
        if one.shape != truth.shape or truth.ndim != self.frame_ndim or not channels or truth.size == 0:
            self._shapes(one, truth)
        return one, truth

    def _float(self, values: npt.NDArray, name: str) -> npt.NDArray[np.float64]:
        """Floating-point and finite, or an error; as float64."""
        if not np.issubdtype(values.dtype, np.floating):
            raise M2HError(f"{self.task} metric: {name} has dtype {values.dtype}, needs a floating-point one")
        wide = values.astype(np.float64)
        if not np.isfinite(wide).all():
            bad = int(np.count_nonzero(~np.isfinite(wide)))
            raise M2HError(f"{self.task} metric: {name} has {bad} nan or infinite values; mark unknown ones as 0")
        return wide


def ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator, nan when nothing was counted."""
    return float(numerator / denominator) if denominator else float("nan")
