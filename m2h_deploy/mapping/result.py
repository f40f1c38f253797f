"""The result of a map run: a row for each variant, paired differences, problems."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from m2h_deploy.files.text import finite
from m2h_deploy.mapping.compare import Difference


@dataclass(frozen=True)
class MapScore:
    """A map against the true surface under one alignment."""

    alignment: str
    """none, scale, se3 or sim3."""
    figures: dict[str, float]
    """By key, see `figures.MAP_FIGURES`; lengths in meters, shares 0..1, NaN where unknown."""
    scale: float
    """Factor that the map, or for "scale" its depth, was divided by."""
    translation: float
    """Meters that the map was moved by."""
    rotation: float
    """Degrees that it was turned by."""


@dataclass(frozen=True)
class MapRow:
    """One variant: the predictions of a bundle, raw or filtered, or the true labels."""

    name: str
    bundle: str | None
    """Folder of the bundle; None for the true labels."""
    kind: str
    """raw, filtered or truth."""
    frames: int
    """Number of fused frames."""
    triangles: int
    file: str
    """Mesh, relative to the output folder."""
    maps: tuple[MapScore, ...]
    """By alignment; empty without a true surface."""
    figures: dict[str, float]
    """By key, see `figures.FRAME_FIGURES`; NaN where unknown."""
    rates: dict[str, float]
    """Frames per second of preprocess, inference, postprocess, filter and fuse."""
    frame_age: float | None
    """Milliseconds from an image to its prediction, filtered if the row is; None for the true labels."""
    left_out: dict[str, str]
    """Frames that could not be read or predicted, by name, with the reason."""

    def score(self, alignment: str) -> MapScore | None:
        """Return the score under an alignment; None if there is none."""
        return next((score for score in self.maps if score.alignment == alignment), None)


@dataclass(frozen=True)
class MapResult:
    """Maps of a sequence, judged and compared."""

    tool: str
    sequence: str
    frames: int
    """Number of frames of the sequence that were used, with or without a pose."""
    posed: int
    """Number of frames with a pose."""
    settings: dict[str, Any]
    surface: str | None
    """What the maps are compared with; None without a true surface."""
    rows: tuple[MapRow, ...]
    differences: tuple[Difference, ...]
    """Of each bundle against the first, and of filtered against raw predictions of the same bundle."""
    problems: tuple[str, ...]
    """A line for each kind of problem."""
    pictures: dict[str, dict[str, str]]
    """Files of pictures by row: mesh, error; relative to the output folder."""

    def to_json(self) -> dict[str, Any]:
        """Return the result in JSON's types; NaN and infinity are None."""
        return finite(asdict(self))
