"""Where frames come from: an image, a folder, a video file, a camera, a stream of the network."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError
from m2h_deploy.preprocess import as_color_image

IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://")

#: Milliseconds that OpenCV waits for a network stream to open, and for a frame of it; its own default is 30 s.
NETWORK_TIMEOUT = 5000


@dataclass(frozen=True)
class SourceFrame:
    """One picture and the name its results get."""

    name: str
    image: NDArray[np.uint8]
    """uint8 (H, W, 3) BGR."""


@dataclass(frozen=True)
class Skipped:
    """A file that is no picture and not meant to be: RGB-D folders hold depth maps beside their pictures."""

    reason: str


Item = SourceFrame | Skipped | M2HError


@dataclass(frozen=True)
class Source:
    """Frames in order. `read` yields each frame, or why a file gave none: Skipped, or the M2HError of a broken one."""

    count: int | None
    """How many items there will be, where that is known."""
    read: Callable[[], Iterator[Item]]
    """Each call starts again; a live source is opened again."""
    live: bool = False
    """A camera or a network stream: its frames do not wait, and its end is a failure."""
    rate: float | None = None
    """Frames a second, where the source says so."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """The picture at `path` as uint8 (H, W, 3) BGR, upright as its EXIF data says; grey and alpha are converted.

    Raises M2HError on a missing or unreadable file, 16-bit pixels, or a picture under 16 x 16 pixels.
    """
    return as_color_image(_decode(path), str(path))


def _decode(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise M2HError(f"no image at {path}")
    try:
        content = np.fromfile(path, np.uint8)
        # Not IMREAD_UNCHANGED: it leaves out the turn that a camera notes in EXIF.
        image = cv2.imdecode(content, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR) if content.size else None
    except (cv2.error, OSError):
        image = None
    if image is None:
        raise M2HError(f"{path} is not a readable image")
    return np.asarray(image)


def open_source(what: str | int | os.PathLike[str]) -> Source:
    """Open a path (image, folder of images, video), a camera's index (0 or "0") or a network stream's address.

    Raises M2HError when there is nothing to read; a broken file among many is reported in its turn.
    """
    if isinstance(what, (int, np.integer)) and not isinstance(what, bool):
        if what < 0:
            raise M2HError(f"camera {what}: an index is 0 or more")
        return _video(int(what), f"camera{what}", live=True)
    if not isinstance(what, (str, os.PathLike)):
        raise M2HError(
            f"a source is a camera's index, a path or a URL, not {type(what).__name__}: "
            "an image in memory goes to runtime(image) or runtime.submit(image)"
        )
    what = os.fspath(what)
    if what.lower().startswith(STREAMS):
        return _video(what, "stream", live=True)
    path = Path(what)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if path.suffix.lower() in VIDEOS:
            return _video(str(path), path.stem, live=False)
        image = read_image(path)
        return Source(1, lambda: iter([SourceFrame(path.stem, image)]))
    if what.isdecimal():
        return _video(int(what), f"camera{what}", live=True)
    raise M2HError(f"no image, folder, video or camera at '{what}'")


def without_password(address: str) -> str:
    """A network address without the user and password that it may hold, for messages."""
    return re.sub(r"//[^/]*@", "//", address)


def folder_images(path: Path) -> list[tuple[str, Path]]:
    """The images directly in the folder `path`, in the order of their names: each one's name for results, and its file.

    Raises M2HError when there is none.
    """
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES and file.is_file())
    if not files:
        raise M2HError(f"{path} holds no images ({', '.join(sorted(IMAGES))})")
    stems = Counter(file.stem for file in files)
    full = {file.name for file in files}
    # room.png and room.jpg must not write over each other's results, nor room.png.jpg over room.png's.
    return [(file.stem if stems[file.stem] == 1 and file.stem not in full else file.name, file) for file in files]


def read_item(name: str, file: Path) -> Item:
    """One image of a folder, or why it gives none."""
    try:
        pixels = _decode(file)
        if pixels.dtype == np.uint16 and pixels.ndim == 2:
            return Skipped(f"{file} is a 16-bit depth map, not a picture: skipped")
        return SourceFrame(name, as_color_image(pixels, str(file)))
    except M2HError as error:
        return error


def _folder(path: Path) -> Source:
    images = folder_images(path)
    return Source(len(images), lambda: (read_item(name, file) for name, file in images))


def _open_capture(handle: str | int) -> Any:
    """An open capture. Raises M2HError where there is none."""
    kind, name = "camera", str(handle)
    capture: Any
    if isinstance(handle, int):
        capture = cv2.VideoCapture(handle)
    elif handle.lower().startswith(STREAMS):
        kind, name = "stream", without_password(handle)
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_TIMEOUT]
        capture = cv2.VideoCapture(handle, cv2.CAP_FFMPEG, limits)
    else:
        kind = "video"
        capture = cv2.VideoCapture(handle)
    if not capture.isOpened():
        capture.release()
        raise M2HError(f"cannot open {kind} {name}")
    return capture


def _video(handle: str | int, stem: str, *, live: bool) -> Source:
    # Opened at once, so that a camera that is not there is known before an engine is loaded.
    waiting = [_open_capture(handle)]
    count, rate = int(waiting[0].get(cv2.CAP_PROP_FRAME_COUNT)), float(waiting[0].get(cv2.CAP_PROP_FPS))
    name = without_password(str(handle))

    def read() -> Iterator[Item]:
        capture = waiting.pop() if waiting else _open_capture(handle)
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

    return Source(count if not live and count > 0 else None, read, live, rate if 0 < rate <= 1000 else None)
