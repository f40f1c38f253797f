"""The figures of a map: names, units, meaning, and which of two values is better."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One figure, as tables show it."""

    key: str
    heading: str
    unit: str
    factor: float
    """From the stored value to `unit`."""
    places: int
    lower: bool
    """True for errors; False for figures such as mIoU, of which more is better."""
    words: str
    """Definition, for the page."""

    def text(self, value: float | None, *, sign: bool = False) -> str:
        """Return a stored value as text, without the unit; "-" if there is none. A difference has a `sign`."""
        if value is None or math.isnan(value):
            return "-"
        if math.isinf(value):
            return "+∞" if value > 0 else "-∞"
        places = self.places + sign  # differences are small
        shown = round(self.factor * value, places) + 0.0  # + 0.0: no negative zero
        return f"{shown:{'+' if sign else ''}.{places}f}"


#: Figures of a map against the true surface.
MAP_FIGURES = (
    Figure("mean", "ME", "cm", 100, 2, True, "mean distance of the map's surface from the true surface"),
    Figure("sd", "SD", "cm", 100, 2, True, "standard deviation of these distances"),
    Figure("precision", "prec.", "%", 100, 1, False, "share of the map within 5 cm of the true surface"),
    Figure("completeness", "compl.", "%", 100, 1, False, "share of the seen true surface within 5 cm of the map"),
    Figure("fscore", "F-score", "%", 100, 1, False, "harmonic mean of precision and completeness"),
    Figure("label_accuracy", "labels", "%", 100, 1, False, "share of the map with the class of the true surface"),
)

#: Figures of single frames, by metric, then of consecutive frames.
FRAME_FIGURES = {
    "depth": (
        Figure("rmse", "RMSE", "m", 1, 3, True, "root mean squared error of depth, over all pixels"),
        Figure("abs_rel", "AbsRel", "%", 100, 2, True, "mean error of depth, as a share of the true depth"),
    ),
    "semantics": (
        Figure("miou", "mIoU", "%", 100, 2, False, "mean intersection over union of the classes that occur"),
    ),
    "temporal": (
        Figure("tae", "TAE", "%", 100, 2, True, "change of depth between consecutive frames at the same point"),
        Figure("label_flicker", "flicker", "%", 100, 2, True, "share of the points whose class changes between frames"),
        Figure("scale_drift", "drift", "%", 100, 2, True, "standard deviation of a frame's scale of depth, logarithm"),
    ),
}

ALL_FRAME_FIGURES = tuple(figure for figures in FRAME_FIGURES.values() for figure in figures)

#: What maps are aligned by before they are compared with the true surface.
ALIGNMENTS = {
    "none": "as it is",
    "scale": "depth divided by one factor, the median of predicted by true depth over the sequence",
    "se3": "moved by the rigid transform that fits best (ICP)",
    "sim3": "moved and scaled by the similarity transform that fits best (ICP)",
}

ALIGNMENT_NAMES = {"none": "none", "scale": "scale", "se3": "SE(3)", "sim3": "Sim(3)"}
