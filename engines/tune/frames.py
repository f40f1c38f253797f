"""Divide a data set: frames to calibrate on, frames to search on, and others that the gates are judged on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.precision.frames import Pictures
from m2h_deploy.data.frame import Dataset
from m2h_deploy.data.open import open_dataset
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.subset import Subset
from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.bootstrap import FEW_FRAMES


@dataclass(frozen=True)
class TuneFrames:
    """The frames of a tuning run; no frame is in two sets, except that the search looks at calibration frames."""

    calibration: Pictures
    count: int
    """Number of calibration frames, with those held out of it."""
    search: Subset
    check: Subset

    @property
    def held_out(self) -> int:
        """Number of the calibration frames that a lowered graph's PSNR is measured on."""
        return min(2, self.count - 1)


@dataclass(frozen=True)
class Counts:
    """The largest number of frames of each set."""

    calibration: int = 16
    search: int = 6
    check: int = 32


def divide(source: Path, counts: Counts, seed: int) -> TuneFrames:
    """Divide the data at `source`: by its own splits, else at random by `seed`, a sequence in two parts.

    Raises:
        M2HError: The data cannot be read, or has too few frames to calibrate on some and to judge others.
    """
    train, check = _splits(source, seed)
    calibration = _usable(train, counts.calibration, seed)
    search = Subset(calibration.data, calibration.indices[: counts.search], calibration.name)
    pictures = Pictures(str(source), len(calibration), lambda: _images(calibration))
    return TuneFrames(pictures, len(calibration), search, _some(check, counts.check, seed))


def _splits(source: Path, seed: int) -> tuple[Subset, Subset]:
    whole = open_dataset(source, "val")
    try:
        train: Dataset | None = open_dataset(source, "train")
    except M2HError:
        train = None
    if train is not None and len(train) and not _same(train, whole):
        if len(whole) < FEW_FRAMES:
            raise M2HError(f"{source}: {len(whole)} frames in its split val, {FEW_FRAMES} are needed to judge by")
        return _all(train, source), _all(whole, source)
    count = len(whole)
    if count < FEW_FRAMES + 1:
        raise M2HError(
            f"{source} has {count} frame{'s' * (count != 1)}: at least {FEW_FRAMES + 1} are needed, some to calibrate "
            f"on and {FEW_FRAMES} others to judge by"
        )
    order = list(range(count))
    if not isinstance(whole, Sequence):  # neighbors in a sequence are nearly the same picture: its parts stay together
        random.Random(seed).shuffle(order)
    judged = max(FEW_FRAMES, 2 * count // 3)
    rest, check = (
        Subset(whole, tuple(sorted(part)), source.resolve().name) for part in (order[judged:], order[:judged])
    )
    return rest, check


def _same(first: Dataset, second: Dataset) -> bool:
    """Return whether two splits are the same frames, as in a data set without splits."""
    files = getattr(first, "files_of", None)
    other = getattr(second, "files_of", None)
    return len(first) == len(second) and (files is None or other is None or files(0) == other(0))


def _all(data: Dataset, source: Path) -> Subset:
    return Subset(data, tuple(range(len(data))), source.resolve().name)


def _some(subset: Subset, count: int, seed: int) -> Subset:
    if len(subset) <= count:
        return subset
    return Subset(subset.data, tuple(sorted(random.Random(seed).sample(subset.indices, count))), subset.name)


def _usable(subset: Subset, count: int, seed: int) -> Subset:
    """Return `count` random frames, fewer if there are not as many, without those of a single color."""
    order = list(subset.indices)
    random.Random(seed).shuffle(order)
    chosen: list[int] = []
    for index in order:
        image = subset.data[index].image
        if (image != image[:1, :1]).any():
            chosen.append(index)
        if len(chosen) == count:
            break
    if not chosen:
        raise M2HError(f"{subset.name}: every frame to calibrate on is of one color: give pictures of scenes")
    return Subset(subset.data, tuple(sorted(chosen)), subset.name)


def _images(subset: Subset) -> Iterator[NDArray[np.uint8]]:
    for frame in subset:
        yield frame.image
