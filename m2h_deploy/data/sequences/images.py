"""Read the images and depth maps of a sequence, which have one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import Size
from m2h_deploy.data.sequence import Moment
from m2h_deploy.errors import M2HError
from m2h_deploy.files.images import read_image, read_plane


def common_size(files: Iterable[Path]) -> Size:
    """Return the height and width of the first image that can be read. Raises its M2HError if none can."""
    first: M2HError | None = None
    for file in files:
        try:
            return shape_of(read_image(file))
        except M2HError as error:
            first = first or error
    assert first is not None, "a sequence has an image"
    raise first


def image_reader(size: Size) -> Callable[[Moment], npt.NDArray[np.uint8]]:
    """Return what reads the image file of a frame; it raises M2HError if the image is damaged or of another size."""

    def read(moment: Moment) -> npt.NDArray[np.uint8]:
        file = moment.files[0]
        image = read_image(file)
        if shape_of(image) != size:
            raise M2HError(
                f"{file}: image is {image.shape[0]}x{image.shape[1]}, but others of its sequence are "
                f"{size[0]}x{size[1]} (height x width)"
            )
        return image

    return read


def shape_of(image: npt.NDArray[Any]) -> Size:
    """Return the height and width of an image."""
    return int(image.shape[0]), int(image.shape[1])


def read_depth(file: Path, scale: float) -> npt.NDArray[np.float32]:
    """Read 16-bit depth in 1/`scale` m as float32 meters. Raises M2HError, naming the file, if it is not that."""
    stored = read_plane(file, "depth")
    if stored.dtype != np.uint16:
        raise M2HError(f"{file}: depth is {stored.dtype}, expected 16-bit in 1/{scale:g} m")
    return stored.astype(np.float32) / np.float32(scale)
