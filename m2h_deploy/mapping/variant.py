"""What is measured of one variant: as a record of the journal, and as a row of the table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.mapping.errors import SUMS, Cells
from m2h_deploy.mapping.sums import frame_figures

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """A map against the true surface under one alignment."""

    figures: dict[str, float]
    """See `figures.MAP_FIGURES`; lengths in meters, shares 0..1, NaN where unknown."""
    scale: float
    """Factor that the map, or for the alignment "scale" its depth, was divided by."""
    translation: float
    """Meters."""
    rotation: float
    """Degrees."""
    cells: Cells


@dataclass(frozen=True, eq=False)
class Variant:
    """A fused and judged variant."""

    frames: int
    """Number of fused frames."""
    triangles: int
    maps: dict[str, Judged]
    """By alignment; empty without a true surface."""
    sums: dict[str, Floats]
    """By metric, (segments, size)."""
    seconds: dict[str, float]
    """Mean time of a stage for one frame."""
    unread: dict[str, str]
    """Frames that could not be read, by name, with the reason."""
    resets: dict[str, int]
    """How often the temporal filter dropped the past, by reason."""

    def frame_figures(self) -> dict[str, float]:
        """Compute the figures of single and consecutive frames; NaN where nothing was counted."""
        found: dict[str, float] = {}
        for name, sums in self.sums.items():
            found |= frame_figures(name, sums.sum(axis=0))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the record in JSON's types."""
        content = asdict(self)
        content["sums"] = {name: sums.tolist() for name, sums in self.sums.items()}
        for judged in content["maps"].values():
            judged["cells"] = {name: array.tolist() for name, array in judged["cells"].items()}
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Variant:
        """Read what `to_json` returned; None is NaN."""
        maps = {
            name: Judged(
                figures={key: _number(value) for key, value in judged["figures"].items()},
                scale=_number(judged["scale"]),
                translation=_number(judged["translation"]),
                rotation=_number(judged["rotation"]),
                cells=Cells(
                    np.array(judged["cells"]["places"], np.int64).reshape(-1, 3),
                    np.array(judged["cells"]["sums"], np.float64).reshape(-1, len(SUMS)),
                ),
            )
            for name, judged in content["maps"].items()
        }
        sums = {name: np.array(values, np.float64) for name, values in content["sums"].items()}
        return cls(**{**content, "maps": maps, "sums": sums})


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
