"""File names that a file system takes, and checks whether a file is there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from m2h_deploy.errors import M2HError

#: Bytes of a file name that Linux file systems take.
NAME_BYTES = 255


def shorten(name: str, longest: int) -> str:
    """Return `name` where it has at most `longest` bytes, and otherwise its beginning, `~` and 8 digits of its sha256.

    The digits keep shortened names apart; the same name is always shortened to the same one.
    """
    whole = os.fsencode(name)
    if len(whole) <= longest:
        return name
    # A character is never cut: names are UTF-8.
    kept = whole[: max(longest - 9, 0)].decode("utf-8", "ignore")
    return f"{kept}~{hashlib.sha256(whole).hexdigest()[:8]}"


def is_file(path: Path) -> bool:
    """Return whether `path` is a file; False, not an OSError, for a name that the file system does not take."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; False, not an OSError, for a name that the file system does not take."""
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
