"""Chart of the relative error by position in the network."""

from __future__ import annotations

import io

from m2h_deploy.errors import missing_extra
from m2h_deploy.parity.locate import LocateResult

_LEAST, _MOST = 1e-9, 1e2


def draw_errors(result: LocateResult) -> bytes:
    """Draw the relative error as PNG, one dot per value, in graph order, with the names of the blocks on the axis.

    The line is each block's largest error; the first diverging block is marked.

    Raises:
        M2HError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "the chart of errors", error=error) from None
    names = [block.name for block in result.blocks]
    figure = Figure(figsize=(max(6.4, 0.36 * len(names) + 1), 4.2), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    worst = [_shown(block.error) for block in result.blocks]
    axes.step(range(len(names)), worst, where="mid", color="#9db8d9", lw=1)
    axes.scatter(_positions(result), [_shown(v.error) for v in result.values], s=7, color="#3b6fb6", linewidths=0)
    if result.block is not None:
        at = names.index(result.block)
        axes.axvspan(at - 0.5, at + 0.5, color="#d1495b", alpha=0.18, lw=0)
        axes.set_title(f"first difference: {result.block}", fontsize=10, color="#b03040")
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names, rotation=65, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("relative error")
    axes.grid(axis="y", alpha=0.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _shown(error: float) -> float:
    """Clip to the range of the axis: a logarithmic axis cannot show zero or infinity."""
    return min(max(error, _LEAST), _MOST)


def _positions(result: LocateResult) -> list[float]:
    """Return each value's position on the axis: within its block's width, in graph order."""
    place = {block.name: index for index, block in enumerate(result.blocks)}
    seen = dict.fromkeys(place, 0)
    positions = []
    for value in result.values:
        last = result.blocks[place[value.block]].values - 1
        share = seen[value.block] / last if last else 0.5
        seen[value.block] += 1
        positions.append(place[value.block] - 0.38 + 0.76 * share)
    return positions
