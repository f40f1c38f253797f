"""Store what engines compile and calibration ranges in the user's cache folder, never in a bundle."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import write_bytes

_DIGEST_SIZE = hashlib.sha256().digest_size


def user_cache_folder(kind: str) -> Path | None:
    """Return `$XDG_CACHE_HOME/m2h-deploy/KIND`, or the same under `~/.cache`; None if it cannot be written.

    It is not in the bundle, whose files are fixed by its manifest. Only the user has access, because engines execute
    the cached code.
    """
    places = (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"))  # noqa: PTH111 (never raises)
    base = next((place for place in places if Path(place).is_absolute()), None)  # "~" stays for a user without a home
    if base is None:
        return None
    folder = Path(base) / "m2h-deploy" / kind
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_checked(path: Path) -> bytes | None:
    """Read what `write_checked` wrote; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, body = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    return body if hashlib.sha256(body).digest() == digest else None


def write_checked(path: Path, body: bytes) -> bool:
    """Write `body` with its sha256 atomically; return False if that fails, which only costs time later."""
    try:
        write_bytes(path, hashlib.sha256(body).digest() + body)
    except M2HError:
        return False
    return True
