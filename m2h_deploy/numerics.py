"""Judge whether two arrays differ by more than floating-point rounding explains.

A network amplifies rounding errors: at a few pixels, where a normalization divides by almost zero, even float32
deviates from the exact value by 1e-2 of an output's deviation, while the other pixels agree to 1e-6. So no fixed bound
on the largest difference separates a wrong graph from a correct one. Here the bound is measured: `own` are results of
the reference in float32 that differ from each other only by rounding, and errors of that size are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

#: Twice the unit roundoff of float32: the distance from 1 to the next number.
EPSILON = float(np.finfo(np.float32).eps)

#: Largest PSNR in decibels, the resolution of float32.
BEST_PSNR = float(-20 * np.log10(EPSILON))

#: Smallest deviation of an output as a share of its root mean square. Untrained weights and saturated heads give
#: outputs that hardly vary; their actual deviation may be of the size of rounding errors.
LEAST_SPREAD = 0.25

#: Largest ratio of the error's 90th percentile to that of the reference in float32. Measured: correct exports of
#: m2h-tiny, m2h-small and m2h stay below 3.5; FP16 rounding of one block's weights gives over 100.
BULK_FACTOR = 6.0

#: A pixel is an outlier if its error is this many times the largest of the reference's own errors around it.
LOCAL_FACTOR = 10.0

#: Accepted share of outliers, and their accepted number in a small image: a single unstable pixel passes, but not a
#: wrong attention window of 640x480 (0.05 % of the pixels).
OUTLIER_SHARE, OUTLIER_PIXELS = 1e-4, 4

#: Accepted share of differing labels even if rounding changes no label: every picture has ties of two classes.
LABEL_SHARE = 1e-3

#: Rounding of a stored float32 result, in units of EPSILON times the output's root mean square; and at a single pixel,
#: which includes a runtime's approximation of functions (ONNX Runtime's sigmoid is flat below -18).
ROUNDING, LOCAL_ROUNDING = 8.0, 64.0

#: Number of the reference's results to measure before a difference counts as a fault.
REALIZATIONS = 5


@dataclass(frozen=True)
class Difference:
    """Difference of a result from the exact one, and the reference's own float32 error. Shares are of `spread`."""

    max_error: float
    mean_error: float
    psnr: float
    """20 log10(range of the exact output / root mean square error), dB, at most BEST_PSNR."""
    own_mean_error: float
    """Mean error of the reference in float32."""
    bulk: float
    """Ratio of the error's 90th percentile to that of the reference in float32."""
    outliers: float
    """Share of pixels with a larger error than float32 explains there, 0..1."""
    passed: bool

    @property
    def reason(self) -> str:
        """The reason why it did not pass; only meaningful if it did not."""
        if not np.isfinite(self.mean_error):
            return "holds NaN or infinity"
        if self.bulk > BULK_FACTOR:
            return f"is off by {self.bulk:.0f} times float32's own error (mean {self.mean_error:.1e} of its deviation)"
        return f"is off by more than float32 explains on {self.outliers:.2%} of its pixels ({self.psnr:.0f} dB)"


def spread(reference: Array) -> float:
    """Return an output's standard deviation, at least `LEAST_SPREAD` of its RMS."""
    size = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64))))
    return max(float(np.std(reference, dtype=np.float64)), LEAST_SPREAD * size) or 1.0


def span_of(low: float, high: float, mean_square: float) -> float:
    """Return the range for PSNR: high - low, at least `LEAST_SPREAD` of the RMS."""
    return max(high - low, LEAST_SPREAD * float(np.sqrt(mean_square))) or 1.0


def psnr(mean_square_error: float, span: float) -> float:
    """Return the peak signal-to-noise ratio in dB, at most `BEST_PSNR`; `span` is the peak.

    An error that is NaN or infinite, of an output with such values, gives 0 dB.
    """
    if not np.isfinite(mean_square_error):
        return 0.0
    if mean_square_error <= 0:
        return BEST_PSNR
    return min(BEST_PSNR, float(20 * np.log10(span) - 10 * np.log10(mean_square_error)))


def judge(engine: Array, reference: Array, own: Callable[[int], Array], *, rounding: float = 0.0) -> Difference:
    """Judge `engine` against `reference`, both (N, C, H, W), by the reference's own errors.

    Args:
        engine: The result to judge.
        reference: The exact result, in higher precision or from one run of the reference.
        own: `own(k)` is the k-th result of the reference in float32, 0 <= k < REALIZATIONS. They differ only by
            rounding. One is enough for most graphs; the others are requested before a difference counts as a fault,
            because a single result may be accurate by chance if the network is unstable.
        rounding: Absolute error that `engine` may have because of its type, in addition to float32's.
    """
    error = _pixel_error(engine, reference)
    mean_square = float(np.mean(np.square(reference, dtype=np.float64)))
    least = EPSILON * float(np.sqrt(mean_square)) or float(np.finfo(np.float32).tiny)
    bulk_rounding, local_rounding = rounding + ROUNDING * least, rounding + LOCAL_ROUNDING * least
    high = float(np.quantile(error, 0.9))
    errors: list[NDArray[np.float64]] = []
    passed, bulk, outliers = False, np.inf, 1.0
    own_mean = 0.0
    while not passed and len(errors) < REALIZATIONS:
        result = own(len(errors))
        own_mean = own_mean or float(np.mean(np.abs(np.subtract(result, reference, dtype=np.float64))))
        errors.append(_pixel_error(result, reference))
        bulk = max(0.0, high - bulk_rounding) / max(least, *(float(np.quantile(e, 0.9)) for e in errors))
        bound = LOCAL_FACTOR * _largest_nearby(np.max(errors, axis=0)) + local_rounding
        beyond = ~(error <= bound)
        outliers = float(np.mean(beyond))
        few = np.count_nonzero(beyond) <= max(OUTLIER_PIXELS, OUTLIER_SHARE * error.size)
        passed = bool(bulk <= BULK_FACTOR and few)
    deviation = spread(reference)
    difference = np.abs(np.subtract(engine, reference, dtype=np.float64))
    span = span_of(float(reference.min()), float(reference.max()), mean_square)
    return Difference(
        max_error=float(difference.max()) / deviation,
        mean_error=float(difference.mean()) / deviation,
        psnr=psnr(float(np.mean(difference**2)), span),
        own_mean_error=own_mean / deviation,
        bulk=bulk,
        outliers=outliers,
        passed=passed,
    )


def judge_labels(engine: NDArray, reference: NDArray, own: Callable[[int], NDArray]) -> Difference:
    """Judge class labels by the share of differing pixels, relative to the effect of rounding on the reference.

    The arguments are those of `judge`. The errors of the result are shares of pixels.
    """
    share = float(np.mean(engine != reference))
    own_share, index = 0.0, 0
    while index == 0 or (share > max(LABEL_SHARE, BULK_FACTOR * own_share) and index < REALIZATIONS):
        own_share = max(own_share, float(np.mean(own(index) != reference)))
        index += 1
    passed = share <= max(LABEL_SHARE, BULK_FACTOR * own_share)
    bulk = share / max(own_share, LABEL_SHARE / BULK_FACTOR)
    return Difference(share, share, psnr(share, 1.0), own_share, bulk, share, passed)


def perturbed(image: Array, index: int, *, ulps: int = 1) -> Array:
    """Return `image` in float32 with each value changed by up to `ulps` units in the last place.

    `index` 0 is the image itself. Deterministic.
    """
    if index == 0:
        return image
    steps = np.random.default_rng(index).integers(-ulps, ulps, image.shape, dtype=np.int8, endpoint=True)
    return (image * (1 + steps * np.float32(EPSILON))).astype(np.float32)


def _pixel_error(engine: Array, reference: Array) -> NDArray[np.float64]:
    """Return the largest absolute error over a pixel's channels, (N, H, W); infinite for non-finite values."""
    error = np.abs(np.subtract(engine, reference, dtype=np.float64)).max(axis=1)
    return np.where(np.isfinite(error), error, np.inf)


def _largest_nearby(error: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest value within 1/16 of the image's longer side around each pixel."""
    side = max(3, max(error.shape[1:]) // 16)
    kernel = np.ones((2 * side + 1, 2 * side + 1), np.uint8)
    return np.stack([cv2.dilate(frame.astype(np.float32), kernel) for frame in error])
