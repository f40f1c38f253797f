"""Exceptions that NumPy raises for a damaged .npy or .npz file."""

from __future__ import annotations

import zlib
from tokenize import TokenError
from zipfile import BadZipFile

#: NumPy, zipfile and zlib raise various types: for a header that is not Python, an unknown compression, a size beyond
#: the memory, or a missing entry.
DAMAGED_ARRAY: tuple[type[Exception], ...] = (
    OSError,
    TypeError,
    ValueError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    TokenError,
    BadZipFile,
    zlib.error,
)
