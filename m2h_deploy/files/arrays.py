"""Read .npy files, and name the exceptions that NumPy raises for a damaged .npy or .npz file."""

from __future__ import annotations

import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.causes import failure
from m2h_deploy.errors import M2HError
from m2h_deploy.files.names import require_file

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


def read_array(path: Path, what: str) -> NDArray[Any]:
    """Read the array of a .npy file, without unpickling.

    Args:
        path: the file.
        what: name of the array in messages.

    Raises:
        M2HError: the file is missing or damaged, or is an archive of arrays.
    """
    require_file(path, what)
    try:
        array = np.load(path, allow_pickle=False)
    except DAMAGED_ARRAY as error:
        damaged = f"{path}: {what} is not a readable .npy file ({type(error).__name__})"
        # A damaged header can request more memory than is available.
        if isinstance(error, MemoryError) and not _holds_array(path):
            raise M2HError(damaged) from error
        raise failure(error, f"cannot read {path}", damaged) from error
    if not isinstance(array, np.ndarray):
        raise M2HError(f"{path}: {what} is an archive of arrays, expected one array (.npy)")
    return array


def _holds_array(path: Path) -> bool:
    """Return whether the file is as long as its header says."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, OverflowError):
        return False
    return True
