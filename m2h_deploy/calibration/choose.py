"""Choose a correction by cross-validation: it is kept only where it lowers the error on what it was not fitted on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.calibration.fit import Correction, fit_correction, inliers
from m2h_deploy.calibration.samples import FEWEST_UNITS, Samples
from m2h_deploy.metrics.bootstrap import student

Floats = NDArray[np.float64]

#: Most folds; as many as units where there are fewer, each then left out once.
_FOLDS = 10

#: Largest factor between the scale beside an offset and the scale alone. If all distances are alike, an offset explains
#: them as well as a scale does, and is wrong at every other distance.
_ALIKE = 1.5


@dataclass(frozen=True)
class Candidate:
    """One way to correct depth, and its error."""

    name: str
    """as it is, scale, scale and offset."""
    correction: Correction
    """Fitted on all samples."""
    abs_rel: float
    """Mean absolute relative error as a share of the depth, of units that were left out of the fit."""
    gain: float
    """Decrease of the error from the best simpler candidate."""
    needed: float
    """Smallest significant gain: its standard error times the 97.5 % quantile of Student's t."""
    considered: bool = True
    """False for an offset that the data cannot tell from a scale."""

    @property
    def significant(self) -> bool:
        """True if the candidate is considered and its gain is larger than `needed`."""
        return self.considered and self.gain > self.needed


@dataclass(frozen=True)
class Choice:
    """All candidates, and which is best."""

    candidates: tuple[Candidate, ...]
    """The first is the present correction."""
    best: Candidate
    folds: int
    outliers: int
    """Number of samples that contradict the others; they have no influence and are not judged."""


def choose_correction(samples: Samples, present: Correction) -> Choice:
    """Compare `present` with a fitted scale, and that with a fitted scale and offset."""
    near = inliers(samples)
    folds = np.array_split(np.arange(samples.units), min(_FOLDS, samples.units))
    best_errors = _errors(samples, near, [present] * samples.units)
    best = Candidate("as it is", present, float(best_errors.mean()), 0.0, 0.0)
    candidates = [best]
    for name, offset in (("scale", False), ("scale and offset", True)):
        corrections = _left_out_fits(samples, folds, offset=offset)
        errors = _errors(samples, near, corrections)
        gains = best_errors - errors
        fitted = fit_correction(samples, offset=offset)
        change = fitted.scale / candidates[-1].correction.scale if offset else 1.0
        alike = 1 / _ALIKE <= change <= _ALIKE
        candidates.append(Candidate(name, fitted, float(errors.mean()), float(gains.mean()), _needed(gains), alike))
        if candidates[-1].significant:
            best, best_errors = candidates[-1], errors
    return Choice(tuple(candidates), best, len(folds), int(near.size - np.count_nonzero(near)))


def _needed(gains: Floats) -> float:
    """Return the gain that a candidate must exceed to be significant."""
    if len(gains) < FEWEST_UNITS:
        return float("inf")
    return student(len(gains) - 1) * float(gains.std(ddof=1)) / math.sqrt(len(gains))


def _left_out_fits(samples: Samples, folds: list[NDArray[np.intp]], *, offset: bool) -> list[Correction]:
    """Return for each unit a correction fitted without its fold."""
    corrections: list[Correction] = []
    for fold in folds:
        rest = samples.subset(~np.isin(samples.unit, fold))
        corrections += [fit_correction(rest, offset=offset)] * len(fold)
    return corrections


def _errors(samples: Samples, near: NDArray[np.bool_], corrections: list[Correction]) -> Floats:
    """Return the mean absolute relative error of each unit that has inliers, each with its own correction."""
    scale = np.array([correction.scale for correction in corrections])[samples.unit]
    offset = np.array([correction.offset for correction in corrections])[samples.unit]
    corrected = np.maximum(scale * samples.predicted + offset, 0.0)
    error = np.abs(corrected / samples.measured - 1)
    count = np.bincount(samples.unit[near], minlength=samples.units)
    total = np.bincount(samples.unit[near], error[near], minlength=samples.units)
    return np.asarray(total[count > 0] / count[count > 0])
