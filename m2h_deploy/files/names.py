"""Keep file names within the limits of file systems, and check whether a file exists."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from m2h_deploy.errors import M2HError

#: Largest number of bytes of a file name on Linux file systems.
NAME_BYTES = 255


def shorten(name: str, longest: int) -> str:
    """Return `name` if it has at most `longest` bytes, else its beginning, `~` and 8 digits of its sha256.

    The digits distinguish shortened names; the same name is always shortened in the same way.
    """
    whole = os.fsencode(name)
    if len(whole) <= longest:
        return name
    # Cut between characters: names are UTF-8.
    kept = whole[: max(longest - 9, 0)].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(whole).hexdigest()[:8]}"


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False instead of an OSError if the file system does not support the name."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; False instead of an OSError if the file system does not support the name."""
    try:
        return path.is_dir()
    except OSError:
        return False


def require_file(path: Path, what: str) -> Path:
    """Return `path` where it is a file.

    Raises:
        M2HError: it is not; the message says that `what` is missing.
    """
    if not is_file(path):
        raise M2HError(f"{path}: {what} is missing")
    return path
