"""Read numeric arrays from MATLAB 5 files, as far as NYUv2's two small side files need it.

The format is MathWorks' "MAT-File Format", level 5: a header of 128 bytes, then elements of (type, length, data), each
padded to 8 bytes. A variable is an element that contains elements, and may be compressed with zlib. This reader checks
all bounds, because the common reader crashes the process on some damaged files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m2h_deploy.errors import M2HError

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
# NumPy types of the storage types of elements, and of the classes of numeric arrays.
_STORAGE = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
#: Largest size of an uncompressed variable, in bytes. The side files have a few kilobytes.
_LARGEST = 1 << 24


def read_numbers(path: Path, name: str) -> npt.NDArray[Any]:
    """Read the numeric array `name` of a MATLAB 5 file, in its own shape and type.

    Raises:
        M2HError: the file is missing or damaged, is not MATLAB 5, or has no such numeric array.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise M2HError(f"{path}: cannot be read ({error.strerror})") from error
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise M2HError(f"{path}: not a readable MATLAB file (level 5)")
    try:
        for kind, content in _elements(data, _HEADER, order):
            if kind == _COMPRESSED:
                content = zlib.decompressobj().decompress(content, _LARGEST)
                kind, content = next(_elements(content, 0, order))
            found = _numeric(content, name, order) if kind == _MATRIX else None
            if found is not None:
                return found
    except (struct.error, zlib.error, ValueError, StopIteration) as error:
        raise M2HError(f"{path}: not a readable MATLAB file, it is damaged") from error
    raise M2HError(f"{path}: has no variable '{name}' with numbers")


def _elements(data: bytes, at: int, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield the (type, content) pairs of consecutive elements.

    Raises:
        ValueError: an element is longer than the remaining data.
    """
    while at < len(data):
        (kind,) = struct.unpack_from(f"{order}I", data, at)
        if kind >> 16:
            # A small element has its length in the upper half of its type, followed by up to four bytes of data.
            kind, length, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            (length,) = struct.unpack_from(f"{order}I", data, at + 4)
            start = at + 8
            end = start + length + (0 if kind == _COMPRESSED else -length % 8)
        if start + length > len(data):
            raise ValueError("an element is cut short")
        yield kind, data[start : start + length]
        at = end


def _numeric(matrix: bytes, name: str, order: str) -> npt.NDArray[Any] | None:
    """Parse the array of a variable; None if it is not numeric or has another name."""
    parts = _elements(matrix, 0, order)
    _, flags = next(parts)
    _, dims = next(parts)
    _, label = next(parts)
    target = _CLASSES.get(struct.unpack_from(f"{order}I", flags)[0] & 0xFF)
    if target is None or label.rstrip(b"\0").decode("latin-1") != name:
        return None
    kind, content = next(parts)
    if kind not in _STORAGE:
        raise ValueError("numbers of an unknown type")
    shape = np.frombuffer(dims, f"{order}i4").tolist()
    stored = np.frombuffer(content, order + _STORAGE[kind])
    return stored.astype(target).reshape(shape, order="F")
