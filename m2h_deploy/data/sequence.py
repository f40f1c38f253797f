"""Sequence: the frames of one moving camera, in order of time, with its poses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Frame, Intrinsics, Pose


@dataclass(frozen=True, eq=False)
class Moment:
    """One image of a sequence: what is known of it before it is read."""

    name: str
    """Name of the frame, unique in its sequence, usable as the name of a file."""
    timestamp: float
    """Seconds."""
    pose: Pose | None
    """None where tracking was lost, or no pose is close enough in time."""
    files: tuple[Path, ...] = ()
    """The image, then its labels, whether they exist or not."""


@dataclass(frozen=True, eq=False)
class Sequence:
    """Data set (see `Dataset`) whose frames have a time stamp and mostly a pose, read one at a time."""

    folder: Path
    moments: tuple[Moment, ...]
    """In order of time."""
    read_image: Callable[[Moment], npt.NDArray[np.uint8]]
    """Reads the image of a frame. Raises M2HError, naming the file, if it cannot."""
    intrinsics: Intrinsics
    size: tuple[int, int]
    """Height and width of the images, pixels."""
    label_readers: Mapping[str, Callable[[Moment], npt.NDArray[Any]]] = field(default_factory=dict)
    """For each field of `Frame` that the sequence has, what reads it; fails as `read_image` does."""
    skipped: tuple[str, ...] = ()
    """A line for each kind of image that was left out or has no pose or depth, with the reason and their number."""
    surface: Path | None = None
    """Mesh (PLY, meters, in the world's frame) of the true surface, if there is one."""
    class_names: tuple[str, ...] = ()
    derived: frozenset[str] = field(default_factory=frozenset)

    def __len__(self) -> int:
        return len(self.moments)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(self.moments[index])

    def __iter__(self) -> Iterator[Frame]:
        return (self[index] for index in range(len(self)))

    def read(self, moment: Moment) -> Frame:
        """Read one frame with all its labels. Raises M2HError, naming the file, if it cannot."""
        labels: dict[str, Any] = {name: read(moment) for name, read in self.label_readers.items()}
        return Frame(
            self.read_image(moment),
            moment.name,
            intrinsics=self.intrinsics,
            timestamp=moment.timestamp,
            pose=moment.pose,
            **labels,
        )

    def read_label(self, name: str, moment: Moment) -> npt.NDArray[Any] | None:
        """Read one field of a frame alone; None if the sequence lacks it. Raises M2HError as `read` does."""
        read = self.label_readers.get(name)
        return None if read is None else read(moment)

    def files_of(self, index: int) -> tuple[Path, ...]:
        """List the files of a frame, image first."""
        return self.moments[index].files

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the frames, in order; the frames of a video have one file, but names of their own."""
        return tuple(moment.name for moment in self.moments)

    @property
    def rate(self) -> float:
        """Images per second, from the median step in time; 0 for a single image."""
        times = np.array([moment.timestamp for moment in self.moments])
        step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        return 1.0 / step if step > 0 else 0.0
