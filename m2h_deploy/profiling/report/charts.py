"""Charts of a bench result as SVG for a page.

The drawings stretch to the width of the page, so they contain no text: axes are labeled in HTML around them, which
stays legible on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m2h_deploy.profiling.report.words import number

#: Coordinates of every drawing; the page scales it.
WIDTH, HEIGHT = 1000, 200

#: Largest number of bars of a histogram; fewer for few runs.
_BINS = 80

#: Larger numbers of points are reduced: each time interval keeps its slowest run.
_POINTS = 700


@dataclass(frozen=True)
class Chart:
    """A drawing and the labels around it."""

    svg: str
    """The content of the `<svg>` element."""
    left: str
    middle: str
    right: str
    """Along the x axis."""
    note: str = ""


def _axis(low: float, high: float, unit: str) -> tuple[str, str, str]:
    return tuple(f"{number(value)} {unit}" for value in (low, (low + high) / 2, high))  # type: ignore[return-value]


def span(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return a common range for histograms: from the minimum to slightly beyond the largest 99th percentile."""
    low = min(min(values) for values in series)
    high = max(float(np.percentile(values, 99)) for values in series)
    high += 0.08 * (high - low)
    return low, high if high > low else low + max(abs(low), 1e-6) * 0.1


def histogram(values: Sequence[float], low: float, high: float, marks: Sequence[float]) -> Chart:
    """Draw a histogram of times with lines at `marks`; values beyond `high` are counted in the note."""
    data = np.asarray(values, np.float64)
    bins = min(_BINS, max(12, len(data) // 4))
    counts, _ = np.histogram(data[data <= high], bins, (low, high))
    scale = HEIGHT * 0.95 / max(int(counts.max()), 1)
    step = WIDTH / bins
    bars = "".join(
        f'<rect x="{index * step:.1f}" y="{HEIGHT - count * scale:.1f}" width="{step * 0.86:.1f}" '
        f'height="{count * scale:.1f}"/>'
        for index, count in enumerate(counts)
        if count
    )
    lines = "".join(
        f'<path class="mark" d="M{WIDTH * (mark - low) / (high - low):.1f} 0V{HEIGHT}"/>'
        for mark in marks
        if mark <= high
    )
    beyond = int((data > high).sum())
    note = (
        f"{beyond} of {len(data)} beyond {number(high)} ms, the slowest {number(float(data.max()))} ms"
        if beyond
        else ""
    )
    return Chart(f'<g class="bars">{bars}</g>{lines}', *_axis(low, high, "ms"), note)


def timeline(x: Sequence[float], y: Sequence[float], *, limit: float | None = None, top: float | None = None) -> Chart:
    """Draw dots over time in seconds; `limit` is a dashed line, `top` the end of the y axis."""
    xs, ys = _thin(np.asarray(x, np.float64), np.asarray(y, np.float64))
    low, high = float(xs.min()), float(xs.max())
    most = top if top is not None else float(ys.max()) * 1.05
    width = max(high - low, 1e-9)
    dots = "".join(
        f"M{WIDTH * (a - low) / width:.1f} {HEIGHT * (1 - min(b, most) / max(most, 1e-9)):.1f}h0"
        for a, b in zip(xs, ys, strict=True)
    )
    line = ""
    if limit is not None and limit <= most:
        line = f'<path class="limit" d="M0 {HEIGHT * (1 - limit / most):.1f}H{WIDTH}"/>'
    return Chart(f'{line}<path class="dots" d="{dots}"/>', *_axis(low, high, "s"), f"0 to {number(most)} ms")


def sparkline(x: Sequence[float], y: Sequence[float]) -> str:
    """Draw a line over time, scaled from its minimum to its maximum."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(xs) < 2:
        return ""
    width, height = max(float(np.ptp(xs)), 1e-9), float(np.ptp(ys))
    places = (
        f"{WIDTH * (a - xs[0]) / width:.0f} {HEIGHT * (0.95 - 0.9 * ((b - ys.min()) / height if height else 0.5)):.0f}"
        for a, b in zip(xs, ys, strict=True)
    )
    return f'<path class="line" d="M{"L".join(places)}"/>'


def _thin(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce to at most `_POINTS` points: the largest value of each interval."""
    if len(xs) <= _POINTS:
        return xs, ys
    keep = [piece[np.argmax(ys[piece])] for piece in np.array_split(np.arange(len(xs)), _POINTS)]
    return xs[keep], ys[keep]
