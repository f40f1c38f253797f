"""Labels of a sequence, stored as one image file for each frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.data.conversion import Size
from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequence import Moment

#: What a frame without a file has: every pixel is unknown. Edges have no such value.
_UNKNOWN: dict[str, Callable[[Size], npt.NDArray[Any]]] = {
    "depth": lambda size: np.zeros(size, np.float32),
    "semantics": lambda size: np.full(size, IGNORE_LABEL, np.uint8),
    "normals": lambda size: np.zeros((*size, 3), np.float32),
}


@dataclass(frozen=True)
class Planes:
    """The files of one kind of label."""

    field: str
    """Field of `Frame`."""
    files: dict[str, Path]
    """By the name of the frame. A frame that is not here has no label; for edges, every frame is here."""
    read: Callable[[Path, Size], npt.NDArray[Any]]
    """Reads a file as the field's type. Raises M2HError, naming the file, if it cannot."""


def moments(
    names: list[str], times: list[float], poses: list[Pose | None], images: list[Path], labels: list[Planes]
) -> tuple[Moment, ...]:
    """Assemble what is known of each frame before it is read."""
    return tuple(
        Moment(name, time, pose, (image, *(planes.files[name] for planes in labels if name in planes.files)))
        for name, time, pose, image in zip(names, times, poses, images, strict=True)
    )


def label_readers(labels: list[Planes], size: Size) -> dict[str, Callable[[Moment], npt.NDArray[Any]]]:
    """Return what reads each kind of label, for images of `size`; a frame without a file is wholly unknown."""

    def read(planes: Planes, moment: Moment) -> npt.NDArray[Any]:
        file = planes.files.get(moment.name)
        return _UNKNOWN[planes.field](size) if file is None else planes.read(file, size)

    return {planes.field: partial(read, planes) for planes in labels}
