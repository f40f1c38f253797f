"""Draw a fused variant: its mesh, and its errors from above with the camera's path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Pose
from m2h_deploy.files.atomic import write_bytes
from m2h_deploy.files.provenance import mark_png
from m2h_deploy.mapping.fuse import Fused
from m2h_deploy.mapping.surface import TrueSurface
from m2h_deploy.mapping.view import error_from_above, picture_of_mesh, up_of
from m2h_deploy.sinks.files import encode_png

#: Kinds of pictures: the mesh in the colors of the classes, and its errors from above.
KINDS = ("mesh", "error")

#: Distance of the last color of all error pictures, meters, so that they can be compared.
_MOST = 0.2


def picture_file(folder: Path, stem: str, kind: str) -> Path:
    """Return the file of one of the `KINDS` of pictures of a variant."""
    return folder / f"{stem}.{kind}.png"


def draw_pictures(
    fused: Fused, surface: TrueSurface | None, poses: list[Pose], colors: NDArray[np.uint8], folder: Path, stem: str
) -> None:
    """Write the pictures of a variant; there is no picture of errors without a true surface.

    Args:
        fused: The variant.
        surface: The true surface.
        poses: Of the cameras, which show what is up.
        colors: Colors of the classes, RGB, uint8 (C, 3).
        folder: Folder of the pictures.
        stem: Beginning of their names.
    """
    up = up_of(poses)
    around = None if surface is None else surface.mesh
    pictures = {"mesh": picture_of_mesh(fused.mesh, colors, up, around=around)}
    if surface is not None:
        points = fused.mesh.sample().points
        pictures["error"] = error_from_above(points, surface.distances(points), fused.trajectory, up, most=_MOST)
    for kind in KINDS:
        picture_file(folder, stem, kind).unlink(missing_ok=True)
        if kind in pictures:
            write_bytes(picture_file(folder, stem, kind), mark_png(encode_png(pictures[kind])))
