"""Open a video, or a folder of images, as a sequence whose poses are in another file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.conversion import Size
from m2h_deploy.data.folders import ImageFolder
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.camera import find_camera
from m2h_deploy.data.sequences.images import common_size, image_reader, shape_of
from m2h_deploy.data.sequences.lines import counted
from m2h_deploy.data.sequences.settings import Poses, Settings
from m2h_deploy.errors import M2HError
from m2h_deploy.files.names import NAME_BYTES, shorten
from m2h_deploy.files.videos import is_cut_short, open_video
from m2h_deploy.runtime.preprocess import as_color_image

#: Bytes of a frame's name that follow the name of its video, and of the names of results.
_ADDED_BYTES = 32


def open_images(folder: Path, settings: Settings) -> Sequence:
    """Open a folder of images. Their times are in their names, or follow from `rate`, from 0.

    A name is a time stamp in seconds with decimals (1305031102.175304.png), or in nanoseconds (16 to 19 digits).

    Raises:
        M2HError: There are no images, their times are unknown, or the camera is unknown or does not fit.
    """
    pictures = ImageFolder.open(folder)
    files, repeated = pictures.files, []
    times = [_time_in(file.stem) for file in files]
    if settings.rate is not None:
        times = [index / settings.rate for index in range(len(files))]
    kept: dict[float, Path] = {}
    for time, file in sorted(zip(times, files, strict=True), key=lambda pair: (pair[0] is None, pair[0], pair[1])):
        if time is None:
            raise M2HError(
                f"{file}: the name is not a time stamp, in seconds (1305031102.175304) or nanoseconds: give the rate, "
                "in images per second (--rate)"
            )
        if time in kept:
            repeated.append(str(file))
        kept.setdefault(time, file)
    size = common_size(kept.values())
    camera = find_camera(folder, size, settings.intrinsics)
    stems = Counter(file.stem for file in kept.values())
    names = [file.stem if stems[file.stem] == 1 else file.name for file in kept.values()]
    poses, lines = _poses(settings, list(kept), names, folder)
    skipped = (*pictures.skipped, *counted(f"{folder}: images that repeat a time stamp are left out", repeated), *lines)
    moments = tuple(
        Moment(name, time, pose, (file,)) for name, (time, file), pose in zip(names, kept.items(), poses, strict=True)
    )
    return Sequence(folder, moments, image_reader(size), camera, size, skipped=skipped)


def _time_in(stem: str) -> float | None:
    """Return the time stamp that is the name of an image, in seconds; None for another name."""
    if re.fullmatch(r"\d+\.\d+", stem):
        return float(stem)
    return int(stem) / 1e9 if re.fullmatch(r"\d{16,19}", stem) else None


def open_video_sequence(file: Path, settings: Settings) -> Sequence:
    """Open a video file. Its times are those of the container, from 0, or follow from `rate`.

    All frames are decoded once for their times. Frames are read fastest in their order.

    Raises:
        M2HError: The video cannot be opened, or the camera is unknown or does not fit.
    """
    times, size = _scan(file, settings.rate)
    skipped: tuple[str, ...] = ()
    if is_cut_short(file):
        times = times[:-1]  # FFmpeg may have decoded the last frame from incomplete data
        skipped = (f"{file} is cut short: it has {len(times)} frames; copy it again",)
    if not times:
        raise M2HError(f"{file} gave no frame")
    camera = find_camera(file.parent, size, settings.intrinsics)
    stem = shorten(file.stem, NAME_BYTES - _ADDED_BYTES)
    names = [f"{stem}_{index:06d}" for index in range(len(times))]
    poses, lines = _poses(settings, times, names, file)
    moments = tuple(Moment(name, time, pose, (file,)) for name, time, pose in zip(names, times, poses, strict=True))
    frames = _VideoFrames(file)
    numbers = {name: index for index, name in enumerate(names)}

    def read(moment: Moment) -> npt.NDArray[np.uint8]:
        return frames.read(numbers[moment.name])

    return Sequence(file, moments, read, camera, size, skipped=skipped + lines)


def _poses(settings: Settings, times: list[float], names: list[str], place: Path) -> tuple[Poses, tuple[str, ...]]:
    if settings.poses is None:
        return [None] * len(times), (f"{place}: the images have no pose: give their trajectory (--poses)",)
    return settings.poses_at(settings.poses, times, names, place)


def _scan(file: Path, rate: float | None) -> tuple[list[float], Size]:
    """Return the time of each frame of a video, and the size of the first."""
    capture = open_video(file)
    try:
        times: list[float] = []
        size = (0, 0)
        while capture.grab():
            if not times:
                size = shape_of(capture.retrieve()[1])
            times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        stated = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    if rate is None and (np.diff(times) > 0).all():
        return times, size
    rate = rate or stated
    if not 0 < rate < np.inf:
        raise M2HError(f"{file}: states neither the times of its frames nor their rate: give the rate (--rate)")
    return [index / rate for index in range(len(times))], size


class _VideoFrames:
    """Frames of a video by number. Seeking is inexact in many containers, so it decodes from the last frame read."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._capture: Any = None
        self._next = 0

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        if self._capture is None or number < self._next:
            self.close()
            self._capture, self._next = open_video(self._file), 0
        while self._next < number and self._capture.grab():
            self._next += 1
        good, image = self._capture.read()
        self._next += 1
        if not good:
            self.close()
            raise M2HError(f"{self._file}, frame {number}: cannot be decoded")
        return as_color_image(image, f"{self._file}, frame {number}")

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None
