"""Read frames from an image, a folder, a video file, a camera, or a network stream."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.open import sequence_images
from m2h_deploy.errors import M2HError, one_line
from m2h_deploy.files.images import decode_picture, image_files, read_image
from m2h_deploy.files.names import NAME_BYTES, is_file, is_folder, shorten
from m2h_deploy.files.videos import VIDEO_SUFFIXES, is_cut_short, open_video, states_frames
from m2h_deploy.runtime.preprocess import as_color_image

STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")

#: Bytes that the number of a frame adds to the name of its video: "_000000", and room for more digits.
_INDEX_BYTES = 10

#: Largest camera index: OpenCV uses a 32-bit integer.
_LAST_CAMERA = (1 << 31) - 1

#: Timeout in milliseconds for opening a network stream and for reading a frame; OpenCV's own default is 30 s.
NETWORK_TIMEOUT = 5000


@dataclass(frozen=True)
class SourceFrame:
    """One picture and the name of its results."""

    name: str
    image: NDArray[np.uint8]
    """uint8 (H, W, 3) BGR."""
    timestamp: float | None = None
    """Time of the image, seconds, if the source knows it."""
    pose: Pose | None = None
    """Camera to world, float64 (4, 4), meters, if the source knows it."""


@dataclass(frozen=True)
class Skipped:
    """A file that is not a picture: RGB-D folders contain depth maps next to their pictures."""

    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


Item = SourceFrame | Skipped | M2HError


@dataclass(frozen=True)
class Source:
    """Frames in order. `read` yields each frame, or Skipped or an M2HError for a file without a frame."""

    count: int | None
    """Number of items, if known."""
    read: Callable[[], Iterator[Item]]
    """Each call starts again; a live source is reopened."""
    live: bool = False
    """Whether it is a camera or a network stream: its frames do not wait, and its end is an error."""
    rate: float | None = None
    """Frames per second, if the source states it."""
    names: Container[str] = ()
    """Names that frames may have."""


@dataclass(frozen=True)
class _Numbered:
    """The names of a video's frames: its stem and a number."""

    stem: str

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and re.fullmatch(rf"{re.escape(self.stem)}_\d{{6,}}", name) is not None


def open_source(what: str | int | os.PathLike[str]) -> Source:
    """Open a path (image, images, sequence, video), a camera's index (0 or "0") or a network stream's address.

    Raises:
        M2HError: The source does not exist or has no frames; a damaged file in a folder is reported when it is read.
    """
    if isinstance(what, (int, np.integer)) and not isinstance(what, bool):
        if what < 0:
            raise M2HError(f"camera {what}: the index must be at least 0")
        return _camera(str(int(what)))
    if not isinstance(what, (str, os.PathLike)):
        raise M2HError(
            f"a source is a camera's index, a path or a URL, not {type(what).__name__}: "
            "an image in memory goes to runtime(image) or runtime.submit(image)"
        )
    what = os.fspath(what)
    if what.lower().startswith(STREAMS):
        return _video(what, "stream", live=True)
    path = Path(what)
    if is_folder(path):
        return _folder(path)
    if is_file(path):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return _video_file(path)
        image = read_image(path)
        name = result_name(path.stem)
        return Source(1, lambda: iter([SourceFrame(name, image)]), names={name})
    if what.isdecimal():
        return _camera(what)
    raise M2HError(f"no image, folder, video or camera at '{what}'")


def result_name(name: str, more: int = 0) -> str:
    """Return the name for the results of a file `name`: its own, shortened if it would be too long.

    Results append up to 12 bytes ("_overlay.png") and `more`; see `names.shorten` for the rule.
    """
    return shorten(name, NAME_BYTES - len("_overlay.png") - more)


def without_password(address: str) -> str:
    """Remove the user and password from a network address, for messages."""
    return re.sub(r"//[^/]*@", "//", address)


def folder_images(path: Path) -> list[tuple[str, Path]]:
    """Return the images of the folder `path`: each one's name for results, and its file.

    They are those of a sequence in order (see `open_sequence`), or else those directly in the folder, sorted by name.

    Raises:
        M2HError: The folder has no images.
    """
    sequence = sequence_images(path)
    if sequence is not None:
        if not sequence:
            raise M2HError(f"{path} is a sequence without images")
        return sequence
    files = image_files(path)
    stems = Counter(file.stem for file in files)
    full = {file.name for file in files}
    # room.png and room.jpg must not overwrite each other's results, nor room.png.jpg those of room.png.
    names = [file.stem if stems[file.stem] == 1 and file.stem not in full else file.name for file in files]
    return [(result_name(name), file) for name, file in zip(names, files, strict=True)]


def read_item(name: str, file: Path) -> Item:
    """Read one image of a folder, or return why it has no frame."""
    try:
        pixels, kind = decode_picture(file)
        if kind is not None:
            return Skipped(f"{file} is a {kind}, not a picture: skipped")
        return SourceFrame(name, as_color_image(pixels, str(file)))
    except M2HError as error:
        return error


def _folder(path: Path) -> Source:
    images = folder_images(path)
    names = {name for name, _ in images}
    return Source(len(images), lambda: (read_item(name, file) for name, file in images), names=names)


def sequence_source(sequence: Sequence) -> Source:
    """Return the images of a sequence as a source whose frames have times and poses."""

    def read(moment: Moment) -> Item:
        try:
            return SourceFrame(moment.name, sequence.read_image(moment), moment.timestamp, moment.pose)
        except M2HError as error:
            return error

    names = {moment.name for moment in sequence.moments}
    return Source(len(sequence), lambda: map(read, sequence.moments), rate=sequence.rate or None, names=names)


def _camera(what: str) -> Source:
    number = int(what)
    if number > _LAST_CAMERA:
        raise M2HError(f"no camera {what}: cameras are counted from 0")
    return _video(number, f"camera{number}", live=True)


def _video_file(path: Path) -> Source:
    """Return the frames of a video file, followed by an item about missing frames, if any."""
    source = _video(str(path.absolute()), result_name(path.stem, _INDEX_BYTES), live=False, name=str(path))
    short, counted = is_cut_short(path), states_frames(path)
    stated = f" of {source.count}" if source.count else ""

    def read_short() -> Iterator[Item]:
        whole, last = 0, None
        for item in source.read():
            if last is not None:
                yield last
                whole += 1
            last = item
        # The last frame is left out: FFmpeg may have decoded it from incomplete data.
        yield M2HError(f"{path} is cut short: it has {whole}{stated} frames; copy it again")

    def read() -> Iterator[Item]:
        index = 0
        for item in source.read():
            yield item
            index += isinstance(item, SourceFrame)
        if 0 < index < (source.count or 0) and counted:
            yield Skipped(f"{path}: {index}{stated} frames could be read")

    return replace(source, read=read_short if short else read)


def _open_capture(handle: str | int, name: str) -> Any:
    """Open a capture. Raises M2HError if that fails."""
    capture: Any
    if isinstance(handle, int):
        kind, capture = "camera", cv2.VideoCapture(handle)
    elif handle.lower().startswith(STREAMS):
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_TIMEOUT]
        kind, capture = "stream", cv2.VideoCapture(handle, cv2.CAP_FFMPEG, limits)
    else:
        return open_video(handle, name)
    if not capture.isOpened():
        capture.release()
        raise M2HError(f"cannot open {kind} {name}")
    return capture


def _video(handle: str | int, stem: str, *, live: bool, name: str | None = None) -> Source:
    name = without_password(str(handle)) if name is None else name
    # Opened immediately, so that a missing camera is reported before an engine is loaded.
    waiting = [_open_capture(handle, name)]
    count, rate = int(waiting[0].get(cv2.CAP_PROP_FRAME_COUNT)), float(waiting[0].get(cv2.CAP_PROP_FPS))

    def read() -> Iterator[Item]:
        capture = waiting.pop() if waiting else _open_capture(handle, name)
        try:
            index = 0
            while True:
                ok, image = capture.read()
                if not ok:
                    break
                yield SourceFrame(f"{stem}_{index:06d}", as_color_image(image, f"{name}, frame {index}"))
                index += 1
            if index == 0:
                yield M2HError(f"{name} gave no frame")
        finally:
            capture.release()

    known = count if not live and count > 0 else None
    return Source(known, read, live, rate if 0 < rate <= 1000 else None, _Numbered(stem))
