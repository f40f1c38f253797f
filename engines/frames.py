"""Calibration frames: pictures, a video or NYUv2's training split, as the runtime would see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.nyuv2 import MAT_NAME
from m2h_deploy.data.opening import open_dataset
from m2h_deploy.errors import M2HError
from m2h_deploy.preprocess import PRESETS, Preprocess
from m2h_deploy.sources import SourceFrame, open_source


def calibration_frames(source: str, *, preset: str, height: int, width: int) -> Iterator[NDArray[np.float32]]:
    """float32 (1, 3, height, width) of every picture of `source`, through the runtime's own preprocess.

    A data set with splits gives its training split, so that what is verified later was never calibrated on. The
    buffer is reused from frame to frame. Raises M2HError on a source that is none, or a broken picture.
    """
    preprocess = Preprocess(PRESETS[preset], height, width)
    for image in _images(source):
        yield preprocess(image)


def _images(source: str) -> Iterator[NDArray[np.uint8]]:
    path = Path(source)
    if path.suffix.lower() == ".mat" or (path / "gt_sets").is_dir() or (path / MAT_NAME).is_file():
        for frame in open_dataset(path, "train"):
            yield frame.image
        return
    for item in open_source(source).read():
        if isinstance(item, M2HError):
            raise item
        if isinstance(item, SourceFrame):
            yield item.image
