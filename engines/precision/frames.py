"""Calibration frames: pictures, a video or NYUv2's training split, preprocessed as in the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.nyuv2 import MAT_NAME
from m2h_deploy.data.open import open_dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.files.names import is_file, is_folder
from m2h_deploy.files.videos import VIDEO_SUFFIXES
from m2h_deploy.runtime.preprocess import Normalization, Preprocess
from m2h_deploy.sources.source import SourceFrame, open_source


@dataclass(frozen=True)
class Pictures:
    """The pictures of an existing source."""

    source: str
    count: int | None
    """Upper bound of the number of pictures; None if unknown."""
    read: Callable[[], Iterator[NDArray[np.uint8]]]
    """Iterate over uint8 (H, W, 3) BGR pictures. Raises M2HError on a damaged one."""


def open_pictures(source: str, least: int = 1) -> Pictures:
    """Open the pictures of `source` without reading them.

    A data set with splits gives its training split, so that the frames of a later verification were never calibrated
    on.

    Raises:
        M2HError: The source cannot be read, has fewer than `least` pictures, or is a camera, which has no end.
    """
    path = Path(source)
    if path.suffix.lower() == ".mat" or is_folder(path / "gt_sets") or is_file(path / MAT_NAME):
        data = open_dataset(path, "train")
        pictures = Pictures(source, len(data), lambda: (frame.image for frame in data))
    else:
        opened = open_source(source)
        if opened.live:
            raise M2HError(f"{source} has no end: calibrate on a folder, a video file, or NYUv2")
        # A video file may state a wrong length.
        count = None if path.suffix.lower() in VIDEO_SUFFIXES else opened.count
        pictures = Pictures(source, count, lambda: _images(opened.read()))
    if pictures.count is not None and pictures.count < least:
        raise M2HError(f"{source} has {pictures.count} frames, {least} are needed: give more frames or ask for fewer")
    return pictures


def _images(items: Iterator[object]) -> Iterator[NDArray[np.uint8]]:
    for item in items:
        if isinstance(item, M2HError):
            raise item
        if isinstance(item, SourceFrame):
            yield item.image


def calibration_frames(
    pictures: Pictures, normalization: Normalization, *, height: int, width: int
) -> Iterator[NDArray[np.float32]]:
    """Preprocess every picture with the runtime's own preprocess to float32 (1, 3, height, width).

    The buffer is reused from frame to frame. Raises M2HError on a damaged picture.
    """
    preprocess = Preprocess(normalization, height, width)
    for image in pictures.read():
        yield preprocess(image)
