"""Robust fit of a scale, or of a scale and an offset, to the logarithm of depth.

The fit is an M-estimate with Tukey's biweight, by iteratively reweighted least squares: samples that are far from the
others have no weight at all, so that wrong ones, in the minority, do not change it. The width of what counts as near is
4.685 robust standard deviations, with which the estimate has 95 % of the efficiency of least squares on normal errors
(Huber and Ronchetti 2009, "Robust Statistics", section 4.8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.calibration.samples import Samples

Floats = NDArray[np.float64]

_TUKEY = 4.685
#: Standard deviation of a normal distribution by its median absolute deviation.
_MAD = 1.4826
#: Smallest standard deviation of the logarithm: exact samples would give every rounding error no weight.
_LEAST = 1e-4
_STEPS = 100
#: Rounds in which the spread is estimated again without outliers, and what these weights take off a normal one.
_REFINEMENTS, _SHRINKING = 4, 1.1
#: Bound of the scale's logarithm.
_FARTHEST = 12.0
_CONVERGED = 1e-9
#: A corrected depth is at least this share of the scaled one: an offset must not turn depth negative.
_POSITIVE = 0.05


@dataclass(frozen=True)
class Correction:
    """Corrected depth: `scale` times the network's depth, plus `offset` meters."""

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, depth: Floats) -> Floats:
        """Correct depth, meters."""
        return np.asarray(np.maximum(self.scale * depth + self.offset, 0.0), np.float64)


def fit_correction(samples: Samples, *, offset: bool = False) -> Correction:
    """Fit the scale, and with `offset` also the offset, that bring predicted to measured depth."""
    ratio, weights = np.log(samples.measured / samples.predicted), samples.weights
    log_scale, shift = _weighted_median(ratio, weights), 0.0
    spread = _inner_spread(ratio - log_scale, weights)
    for _ in range(_STEPS):
        scaled = np.exp(log_scale) * samples.predicted
        residual = np.log(samples.measured) - np.log(scaled + shift)
        roots = np.sqrt(weights * _biweight(residual / spread))
        if not offset:
            step = np.array([np.sum(roots**2 * residual) / np.sum(roots**2), 0.0])
        else:
            slopes = np.stack([scaled, np.ones_like(scaled)], 1) / (scaled + shift)[:, None]
            step = np.linalg.lstsq(slopes * roots[:, None], residual * roots, rcond=None)[0]
        while np.any(np.exp(log_scale + step[0]) * samples.predicted * (1 - _POSITIVE) + shift + step[1] <= 0):
            step = step / 2
        log_scale = float(np.clip(log_scale + step[0], -_FARTHEST, _FARTHEST))
        shift += float(step[1])
        if np.abs(step).max() < _CONVERGED:
            break
    return Correction(float(np.exp(log_scale)), shift)


def inliers(samples: Samples) -> NDArray[np.bool_]:
    """Return which samples agree with the others up to one common scale, whatever it is."""
    residual = np.log(samples.measured / samples.predicted) - np.log(fit_correction(samples).scale)
    return np.asarray(np.abs(residual) < _TUKEY * _inner_spread(residual, samples.weights))


def _biweight(deviation: Floats) -> Floats:
    """Return Tukey's weight of a residual in standard deviations: 1 at 0, and 0 from 4.685 on."""
    share = np.minimum(np.abs(deviation) / _TUKEY, 1.0)
    return np.asarray((1 - share**2) ** 2)


def _inner_spread(residual: Floats, weights: Floats) -> float:
    """Return the spread of the residuals without outliers, which widen a first estimate."""
    center, spread = 0.0, _spread(residual, weights)
    for _ in range(_REFINEMENTS):
        inner = weights * _biweight((residual - center) / spread)
        center = _weighted_median(residual, inner)
        spread = min(spread, _SHRINKING * _spread(residual - center, inner))
    return spread


def _spread(residual: Floats, weights: Floats) -> float:
    return max(_MAD * _weighted_median(np.abs(residual), weights), _LEAST)


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    return float(np.interp(total[-1] / 2, total - weights[order] / 2, values[order]))
