"""Write the table of a tuning run as one HTML page, with a picture of speed and accuracy."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.tune.result import CHANGES, Row, TuneResult
from m2h_deploy.errors import missing_extra
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.visualize.html import Cell, data_url, render_page

_COLORS = {"✓": "#1c7c47", "✗": "#b3262e", "?": "#96690a"}
_STYLES = {"✓": "pass", "✗": "fail", "?": "unsure"}

#: Smallest share of a limit that a chart with a logarithmic axis shows.
_LEAST = 1e-3

#: Rows of the table of parts: the others cost next to nothing.
_PARTS = 12


def write_page(result: TuneResult, path: Path) -> Path:
    """Write the self-contained page: picture, table, the search for an INT8 policy.

    Raises:
        M2HError: The page cannot be written, or jinja2 or matplotlib is not installed.
    """
    winner = result.winner
    headline = "No engine passes every gate"
    if winner is not None:
        headline = f"{winner.name} is {winner.ratio:.2f} times as fast as float32"
    page = render_page(
        "tune.html",
        result=result,
        headline=headline,
        pareto=data_url("image/png", _draw_rows(result)),
        columns=("engine", "MB", "ms", "times as fast", "threads", *CHANGES.values(), "gates"),
        rows=[
            [*row.cells[:-1], Cell(row.mark, _STYLES.get(row.mark, ""))]
            for row in sorted(result.rows, key=lambda row: -row.ratio)
            if row.speed is not None
        ],
        skipped=[
            *result.skipped,
            *({"name": row.name, "reason": row.obstacle} for row in result.rows if row.obstacle is not None),
        ],
        searches=[_search(activations, search) for activations, search in result.searches.items()],
    )
    return write_bytes(path, page)


def worst_share(row: Row) -> float:
    """Return how much of its limit the gate uses up that uses most of it; PSNR as power of the error."""
    shares = [0.0]
    for gate in row.gates.values():
        if gate["limit"] is None or gate["value"] is None:
            continue
        if gate["unit"] == "dB":
            shares.append(10 ** ((gate["limit"] - gate["value"]) / 10))
        elif gate["unit"] != "frames":
            shares.append(gate["value"] / max(gate["limit"], 1e-9))
    return max(shares)


def _draw_rows(result: TuneResult) -> bytes:
    figure, axes = _axes(8.2, 4.4)
    rows = [row for row in result.rows if row.speed is not None and row.gates]
    points = {row.name: (row.ratio, max(worst_share(row), _LEAST)) for row in rows}
    for row in rows:
        x, y = points[row.name]
        axes.scatter(x, y, s=46, color=_COLORS.get(row.mark, "#777"), zorder=3)
        # Away from the nearest other point, whose name is on the other side.
        others = [point for name, point in points.items() if name != row.name]
        nearest = min(others, key=lambda point: abs(point[0] - x) + abs(math.log10(point[1] / y)), default=(x, 0.0))
        offset, align = ((0, 8), "bottom") if (y, x) > nearest[::-1] else ((0, -8), "top")
        label = axes.annotate(row.name, (x, y), offset, textcoords="offset points", ha="center", va=align, fontsize=8)
        label.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1})
    _front(axes, list(points.values()))
    axes.set_xlabel(f"times as fast as {result.baseline}")
    return _png(figure, axes)


def _draw_steps(search: dict[str, Any]) -> bytes:
    figure, axes = _axes(8.2, 3.6)
    points = [(100 * step["share"], max(max(step["losses"].values()), _LEAST)) for step in search["steps"]]
    for x, y in points:
        axes.scatter(x, y, s=46, color=_COLORS["✓" if y <= 1 else "✗"], zorder=3)
    _front(axes, points)
    axes.set_xlabel("share of the multiply-accumulates in INT8, %")
    return _png(figure, axes)


def _front(axes: Any, points: Sequence[tuple[float, float]]) -> None:
    """Draw the Pareto front: points that no other beats in both directions."""
    front = sorted(
        point for point in points if not any(o[0] >= point[0] and o[1] <= point[1] and o != point for o in points)
    )
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color="#9db8d9", lw=1.4, zorder=2)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "the picture of the candidates", error=error) from None
    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_yscale("log")
    axes.margins(x=0.18, y=0.12)
    axes.set_ylabel("share of its limit that\nthe worst gate uses up")
    axes.grid(alpha=0.25)
    return figure, axes


def _png(figure: Any, axes: Any) -> bytes:
    axes.axhline(1, color="#b3262e", lw=1.2, ls="--")
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 2))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _search(activations: str, search: dict[str, Any]) -> dict[str, Any]:
    total = sum(entry["macs"] for entry in search["alone"]) or 1
    chosen = next(step for step in search["steps"] if step["share"] == search["share"])
    worst = max(chosen["losses"].values())
    found = f"uses up {100 * worst:.0f} % of the limit of its worst gate, on the frames of the search"
    ranked = sorted(search["alone"], key=lambda entry: -max(entry["losses"].values()))[:_PARTS]
    rows = []
    for entry in ranked:
        gate, share = max(entry["losses"].items(), key=lambda item: item[1])
        rows.append([Cell(entry["part"], "code"), f"{100 * entry['macs'] / total:.1f} %", gate, f"{100 * share:.0f} %"])
    return {
        "chart": data_url("image/png", _draw_steps(search)),
        "words": (
            f"With {activations} activations, the policy with {100 * search['share']:.1f} % of the "
            f"multiply-accumulates in INT8 {found}."
        ),
        "rows": rows,
    }
