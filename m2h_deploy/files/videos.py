"""Open video files, and recognize truncated ones by the sizes that their containers state.

A reader of frames cannot detect truncation: the last frame of half a file looks like that of a complete one. A file
counts as complete unless it is known to be truncated, so a recording of unknown length (a container that was never
closed, or one made for streaming) does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import cv2

from m2h_deploy.causes import MachineError, reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import library_path

#: Suffixes of files that are read as videos.
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"pnot"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def open_video(path: str | os.PathLike[str], name: str | None = None) -> Any:
    """Open a video file as cv2.VideoCapture, which the caller releases; `name` names it in an error.

    Raises:
        M2HError: It cannot be opened.
    """
    # Absolute, because FFmpeg interprets the part before a colon as a protocol: 2024-05-01T12:30:00.mp4.
    file, name = Path(path).absolute(), str(path) if name is None else name
    try:
        file.open("rb").close()  # OpenCV gives no reason
    except OSError as error:
        raise MachineError(f"cannot read {name}: {reason(error)}") from None
    with library_path(file) as readable:
        capture = cv2.VideoCapture(str(readable))
    if not capture.isOpened():
        capture.release()
        short = ": it is cut short; copy it again" if is_cut_short(file) else ""
        raise M2HError(f"cannot open video {name}{short}")
    return capture


def is_cut_short(path: str | os.PathLike[str]) -> bool:
    """Return whether the MP4, MOV, AVI, Matroska or WebM file at `path` has fewer bytes than its container states."""
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as stream:
            head = stream.read(12)
            stream.seek(0)
            if head[4:8] in _BOXES:
                return _boxes_end(stream, size) > size
            if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
                return _chunks_end(stream, size) > size
            if head[:4] == _EBML:
                return _segment_end(stream) > size
    except OSError:  # reported when the frames are read
        pass
    return False


def states_frames(path: str | os.PathLike[str]) -> bool:
    """Return whether the container states its number of frames; Matroska and WebM only state a duration."""
    with Path(path).open("rb") as stream:
        return stream.read(4) != _EBML


def _boxes_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the boxes of ISO/IEC 14496-12, as far as they can be followed."""
    end = 0
    while end + 8 <= size:
        stream.seek(end)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file; others are not a box
            return size
        end += length
    return end


def _chunks_end(stream: BinaryIO, size: int) -> int:
    """Return the end of the RIFF chunks of an AVI file; large files have several."""
    end = 0
    while end + 8 <= size:
        stream.seek(end)
        head = stream.read(8)
        length = int.from_bytes(head[4:8], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):  # never closed
            return size
        end += 8 + length
        if end == size + 1:  # the padding of the last chunk may be missing
            return size
        end += length % 2
    return min(end, size) if end == size + 1 else end


def _segment_end(stream: BinaryIO) -> int:
    """Return the end of the segment of an EBML file (RFC 8794); 0 if its size is unknown."""
    stream.seek(4)
    header = _size(stream)
    if header is None:
        return 0
    stream.seek(header, os.SEEK_CUR)
    if stream.read(4) != _SEGMENT:
        return 0
    segment = _size(stream)
    return 0 if segment is None else stream.tell() + segment


def _size(stream: BinaryIO) -> int | None:
    """Read a variable-length size of EBML; None if it is unknown."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + stream.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value
