"""Options of the commands that take a sequence of a moving camera."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from m2h_deploy.data.sequence import Sequence

sequence_option = partial(typer.Option, rich_help_panel="Sequence")

PosesOption = Annotated[
    Path | None, sequence_option(metavar="FILE", help="Trajectory in TUM's format.", show_default="the sequence's own")
]

IntrinsicsOption = Annotated[
    str | None, sequence_option(metavar="FX,FY,CX,CY", help="The camera, in pixels.", show_default="the sequence's own")
]

#: Default of `ToleranceOption`, seconds.
TOLERANCE = 0.02

ToleranceOption = Annotated[
    float, sequence_option(metavar="SECONDS", help="Largest difference in time of an image and its pose.", min=0)
]

OffsetOption = Annotated[
    float, sequence_option(metavar="SECONDS", help="Added to the times of the images to find their poses.")
]

RateOption = Annotated[
    float | None,
    sequence_option(metavar="HZ", help="Images per second, used instead of their times.", show_default="none"),
]


def open_posed(
    path: str | Path,
    poses: Path | None,
    intrinsics: str | None,
    *,
    offset: float,
    rate: float | None,
    tolerance: float = TOLERANCE,
) -> Sequence:
    """Open a sequence as the options state it. Raises M2HError if that fails."""
    from m2h_deploy.camera import parse_intrinsics
    from m2h_deploy.data.sequences.open import open_sequence

    camera = None if intrinsics is None else parse_intrinsics(intrinsics)
    return open_sequence(path, poses=poses, intrinsics=camera, tolerance=tolerance, offset=offset, rate=rate)
