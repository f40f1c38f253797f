"""Picture of a calibration: predicted and measured depth, before and after."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.calibration.fit import Correction
from m2h_deploy.calibration.result import CalibrateResult
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.files.provenance import mark_png
from m2h_deploy.visualize.plots import check_matplotlib

#: Name of the picture, for a message.
PICTURE = "the picture of a calibration"

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BEFORE, _AFTER = "#d1495b", "#3b6fb6"
#: Most samples that are drawn as dots.
_DOTS = 5000


def write_picture(result: CalibrateResult, path: Path) -> Path:
    """Write `draw_calibration` to `path`, with the mark of this project's PNG files."""
    return write_bytes(path, mark_png(draw_calibration(result)))


def draw_calibration(result: CalibrateResult) -> bytes:
    """Draw a calibration as PNG: depth by the engine over measured depth, and the relative errors, before and after.

    Without a significant correction, the best that was tried is drawn as such.

    Raises:
        M2HError: Nothing was measured, or matplotlib is not installed.
    """
    check_matplotlib(PICTURE)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    choice, samples = result.choice, result.samples
    if choice is None or samples is None:
        raise M2HError("a calibration without measured depth has no picture")
    first, tried = choice.candidates[0], choice.best
    label = "after"
    if tried is first:
        tried = min((c for c in choice.candidates[1:] if c.considered), key=lambda candidate: candidate.abs_rel)
        label = f"with {tried.name} (not kept)"
    figure = Figure(figsize=(10.5, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    rows = np.linspace(0, len(samples.measured) - 1, min(_DOTS, len(samples.measured))).astype(int)
    measured, predicted = samples.measured[rows], samples.predicted[rows]
    sides = ((first.correction, "before", _BEFORE, first.abs_rel), (tried.correction, label, _AFTER, tried.abs_rel))
    for correction, name, color, error in sides:
        _draw_dots(left, measured, correction(predicted), f"{name}: {_text(correction)}", color)
        _draw_errors(right, samples.measured, correction(samples.predicted), f"{name}: abs rel {error:.1%}", color)
    top = 1.05 * float(max(np.percentile(measured, 99.5), np.percentile(predicted, 99.5)))
    left.plot([0, top], [0, top], color="#444444", lw=1, ls="--")
    left.set(xlim=(0, top), ylim=(0, top), xlabel="measured depth, m", ylabel="depth of the engine, m", aspect="equal")
    right.axvline(0, color="#444444", lw=1, ls="--")
    right.set(xlabel="relative error of depth, %", yticks=[])
    for axes in (left, right):
        axes.grid(alpha=0.2)
        axes.legend(frameon=False, fontsize=9)
    units = f"{samples.frames} frames" if samples.frames > 1 else "1 frame"
    figure.suptitle(f"{result.bundle}: {len(samples.measured)} values of {units}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _text(correction: Correction) -> str:
    return DepthCalibration(scale=correction.scale, offset=correction.offset).text


def _draw_dots(axes: Axes, measured: NDArray[np.float64], depth: NDArray[np.float64], label: str, color: str) -> None:
    size = 3 if len(measured) > 200 else 30
    axes.scatter(measured, depth, s=size, color=color, alpha=0.25 if size == 3 else 0.9, lw=0)
    axes.scatter([], [], s=30, color=color, label=label)  # an opaque dot for the legend


def _draw_errors(axes: Axes, measured: NDArray[np.float64], depth: NDArray[np.float64], label: str, color: str) -> None:
    error = 100 * (depth / measured - 1)
    low, high = np.percentile(error, (0.5, 99.5))
    bins = np.linspace(low, high + 1e-9, min(80, max(6, len(error) // 3)))
    axes.hist(error, bins.tolist(), color=color, alpha=0.45, density=True, label=label)
