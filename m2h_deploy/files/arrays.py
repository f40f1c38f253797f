"""What NumPy raises for a damaged .npy or .npz file."""

from __future__ import annotations

import zlib
from tokenize import TokenError
from zipfile import BadZipFile

#: NumPy, zipfile and zlib raise what their parsers stumble over: a header that is no Python, an unknown compression, a
#: size that no memory holds, an entry that is gone.
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
