"""Recognize files that m2h-deploy wrote: a result may replace an earlier result of its kind, and no other file.

Every kind of result has a mark that its readers ignore: PNG a `Software` chunk, npz an archive comment, MP4 a `free`
box at its end, HTML a `generator`, ONNX its `m2h.` metadata, and so on. A copied or renamed file keeps it.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Literal

from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_writable
from m2h_deploy.files.names import is_file

Kind = Literal["png", "npz", "mp4", "rrd", "onnx", "json", "csv", "html", "junit", "log", "room"]

_NAME = b"m2h-deploy"
_RUN = b"m2h-deploy run"
_ROOM = b"m2h-deploy rooms"

#: First line of the log of `serve`.
LOG_MARK = "m2h-deploy serve: log of Triton"

#: Number of bytes to examine at each end of a file.
_SIGHT = 4096


def mark_png(content: bytes, *, room: bool = False) -> bytes:
    """Return the PNG file `content` with a `Software` chunk that names m2h-deploy."""
    body = b"tEXtSoftware\x00" + (_ROOM if room else _RUN)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]  # after the signature and IHDR


def mark_npz(content: bytes) -> bytes:
    """Return the archive `content` with a comment that names m2h-deploy."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = _RUN
    return buffer.getvalue()


def mark_mp4(path: Path) -> None:
    """Append a box that names m2h-deploy, and that players ignore, to a finished MP4 file."""
    with path.open("ab") as file:
        file.write(_MP4_BOX)


_MP4_BOX = struct.pack(">I4s", 8 + len(_RUN), b"free") + _RUN


def _head(pattern: bytes) -> Callable[[IO[bytes]], bool]:
    compiled = re.compile(pattern, re.DOTALL)
    return lambda file: compiled.match(file.read(_SIGHT)) is not None


def _tail(ending: bytes) -> Callable[[IO[bytes]], bool]:
    def look(file: IO[bytes]) -> bool:
        file.seek(max(0, file.seek(0, io.SEEK_END) - len(ending)))
        return file.read() == ending

    return look


def _onnx(file: IO[bytes]) -> bool:
    """Return whether the metadata has the version of m2h-deploy; the graph is skipped, not read."""
    from m2h_deploy.onnx_graph.info import VERSION

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while (position := file.tell()) < size:
        tag, length = _varint(file), 0
        if tag & 7 == 0:
            _varint(file)
        elif tag & 7 == 2:
            length = _varint(file)
        else:
            return False
        end = file.tell() + length
        if not position < end <= size:
            return False
        if tag == (14 << 3 | 2) and VERSION.encode() in file.read(min(length, _SIGHT)):
            return True
        file.seek(end)
    return False


def _varint(file: IO[bytes]) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            return 0
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            break
    return value


_LOOKS: dict[Kind, Callable[[IO[bytes]], bool]] = {
    "png": _head(rb"\x89PNG.{29}.{4}tEXtSoftware\x00" + _RUN),
    "room": _head(rb"\x89PNG.{29}.{4}tEXtSoftware\x00" + _ROOM),
    "npz": _tail(_RUN),
    "mp4": _tail(_MP4_BOX),
    "rrd": _head(rb"RRF.*" + _NAME),
    "onnx": _onnx,
    "json": _head(rb'\{\s*"tool": "' + _NAME),
    "csv": _head(rb"measurement,subject,run,started_s,total_ms,"),
    "html": _head(rb'.*<meta name="generator" content="' + _NAME),
    "junit": _head(rb'.*<testsuites name="' + _NAME),
    "log": _head(LOG_MARK.encode()),
}


def is_own(path: Path, kind: Kind) -> bool:
    """Return whether m2h-deploy wrote `path` as a result of `kind`. Raises M2HError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _LOOKS[kind](file)
    except OSError as error:
        raise M2HError(f"cannot read the existing file {path}: {reason(error)}") from None


def check_outputs(
    files: Mapping[Kind, Path | None], *, overwrite: bool = False, sources: Iterable[str | Path] = ()
) -> list[Path]:
    """Return the given files after `check_output` for each.

    Raises:
        M2HError: A file must not be written, or two of them are the same file.
    """
    given = {kind: path for kind, path in files.items() if path is not None}
    for kind, path in given.items():
        check_output(path, kind, overwrite=overwrite, sources=sources)
    places = [path.resolve() for path in given.values() if path.is_file() or not path.exists()]
    if len(set(places)) < len(places):
        raise M2HError(f"two results would be written to one file ({', '.join(map(str, given.values()))})")
    return list(given.values())


def check_output(
    path: Path, kind: Kind, *, overwrite: bool = False, sources: Iterable[str | Path] = (), access: bool = True
) -> Path:
    """Return `path`, after checking before the work that a result of `kind` can and may be written there.

    Args:
        path: The file to write.
        kind: Kind of the result.
        overwrite: Whether files that m2h-deploy did not write may be replaced, too.
        sources: Inputs of the command, which are never replaced.
        access: Whether to check the folder as well.

    Raises:
        M2HError: The file cannot or must not be written.
    """
    if path.is_file() and any(is_file(Path(source)) and path.samefile(source) for source in sources):
        raise M2HError(f"{path} is read by this command: write to another place")
    if kind == "png" and path.suffix.lower() != ".png":
        raise M2HError(f"{path}: a picture is written as PNG: give a name that ends in .png")
    if access:
        check_writable(path)
    if not path.is_file():  # new, or a device or pipe
        return path
    if not overwrite and path.stat().st_size and not is_own(path, kind):
        raise M2HError(f"{path} exists, and m2h-deploy did not write it: give another place, or --overwrite")
    return path
