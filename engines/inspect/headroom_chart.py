"""Chart of the magnitudes of every tensor beside the limits of FP16 and E4M3."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.files.provenance import mark_png
from m2h_deploy.visualize.plots import check_matplotlib

#: Name of the picture, for a message.
PICTURE = "the picture of the headroom"

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Left end of the axis, in bits: beyond FP16's smallest number, 2^-24, the distance does not matter.
_LEAST = -32

#: Height of a block's rows, as a share of the distance between blocks.
_BAND = 0.84

_COLORS = {"activation": "#3b6fb6", "input": "#3b6fb6", "weight": "#8a9a5b"}
_BEYOND = "#d1495b"


def write_picture(report: dict[str, Any], path: Path) -> Path:
    """Write `draw_headroom` to `path`, with the mark of this project's PNG files."""
    return write_bytes(path, mark_png(draw_headroom(report)))


def draw_headroom(report: dict[str, Any]) -> bytes:
    """Draw a report of `examine_headroom` as PNG: one line for each tensor, from its smallest magnitude to its largest.

    Tensors are grouped by block, the largest first. The axis is log2 of the magnitude and ends at 2^-32. Tensors beyond
    FP16's largest number are marked; E4M3's limits are those without a scale.

    Raises:
        M2HError: matplotlib is not installed.
    """
    check_matplotlib(PICTURE)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    blocks = [row["block"] for row in report["blocks"]]
    figure = Figure(figsize=(10, 1.6 + 0.42 * len(blocks)), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, block in enumerate(blocks):
        rows = [row for row in report["tensors"] if row["block"] == block and row["smallest"]]
        _draw_block(axes, place, rows, report["limits"]["fp16"]["largest"])
        if place:
            axes.axhline(place - 0.5, color="#dddddd", lw=0.6, zorder=0)
    _draw_limits(axes, report["limits"])
    axes.set_yticks(range(len(blocks)), blocks, fontsize=9)
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    largest = max((row["largest"] for row in report["tensors"]), default=1.0)
    axes.set_xlim(_LEAST, max(19, math.log2(largest or 1.0) + 1))
    ticks = range(_LEAST, int(axes.get_xlim()[1]) + 1, 4)
    axes.set_xticks(ticks, [f"$2^{{{tick}}}$" for tick in ticks], fontsize=9)
    axes.set_xlabel(f"magnitude on {report['frames']} frames, smallest (not zero) to largest")
    axes.grid(axis="x", alpha=0.2)
    handles = [axes.plot([], [], color=_COLORS[kind], lw=3, label=kind)[0] for kind in ("activation", "weight")]
    handles.append(axes.plot([], [], color=_BEYOND, lw=3, label="beyond FP16's largest number")[0])
    figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=9, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_block(axes: Axes, place: int, rows: Sequence[dict[str, Any]], limit: float) -> None:
    """Draw the tensors of one block, one below the other; those beyond `limit` are marked."""
    for index, row in enumerate(rows):
        y = place + _BAND * ((index + 0.5) / len(rows) - 0.5)
        beyond = row["largest"] > limit
        color, width = (_BEYOND, 1.8) if beyond else (_COLORS[row["kind"]], 0.9)
        low, high = (math.log2(row[end]) for end in ("smallest", "largest"))
        axes.plot([max(low, _LEAST), high], [y, y], color=color, lw=width, alpha=0.75, solid_capstyle="butt")
        axes.plot(high, y, ".", color=color, ms=2.2)


def _draw_limits(axes: Axes, limits: dict[str, Any]) -> None:
    styles = {"fp16": ("FP16", "#222222", "-"), "e4m3": ("E4M3, no scale", "#8e44ad", "--")}
    for name, (title, color, line) in styles.items():
        for end, word in (("smallest_normal", "smallest normal"), ("largest", "largest")):
            x = math.log2(limits[name][end])
            axes.axvline(x, color=color, ls=line, lw=1.2)
            axes.annotate(
                f"{title}\n{word}",
                (x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color=color,
            )
