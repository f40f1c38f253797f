"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m2h_deploy.errors import M2HError
from m2h_deploy.names import NAME_BYTES, shorten

#: Bytes that a temporary name adds to the stem (process, random part, ".tmp"), and of a suffix that means a format.
_ADDED_BYTES, _LONGEST_SUFFIX = 40, 16


class NewFile:
    """A file that is written over a longer time: to `temporary`, beside `path` and of its suffix, until `finish`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        # Threads share a process id: the random part keeps two writers of one file apart.
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        stem, suffix = _fitting(self.path)
        self.temporary = self.path.with_name(f".{stem}.{own}.tmp{suffix}")

    def finish(self) -> None:
        """Let the file take its place. Raises M2HError that names `path` when that cannot be."""
        try:
            self.temporary.chmod(0o666 & ~_umask())  # some libraries write files for their owner alone
            self.temporary.replace(self.path)
        except OSError as error:
            raise M2HError(f"cannot write {self.path}: {error.strerror or error}") from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Forget what was written. Harmless after `finish`."""
        with suppress(OSError):  # why it could not be written has been said
            self.temporary.unlink()


def is_temporary(name: str, of: str) -> bool:
    """Whether a file of this name is one that `NewFile` makes on the way to `of`."""
    stem, suffix = (re.escape(part) for part in _fitting(Path(of)))
    return re.fullmatch(rf"\.{stem}\.\d+-[0-9a-f]{{8}}\.tmp{suffix}", name) is not None


def _fitting(path: Path) -> tuple[str, str]:
    """Stem and suffix of a temporary name: a name that is legal by itself may have no room for what is added."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return shorten(path.stem, NAME_BYTES - _ADDED_BYTES - _LONGEST_SUFFIX), suffix


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, of the same suffix, that takes its place when the block ends well.

    When the block raises, Ctrl-C included, `path` stays as it was and the temporary file is gone. An OSError comes
    out as M2HError that names `path`.
    """
    file = NewFile(path)
    try:
        yield file.temporary
        file.finish()
    except OSError as error:
        raise M2HError(f"cannot write {file.path}: {error.strerror or error}") from None
    finally:
        file.discard()


@contextmanager
def whole_folder(
    path: str | os.PathLike[str], take_place: Callable[[Path, Path], object] | None = None
) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` when the block ends well, and else vanishes.

    What exists is refused, but where `take_place(temporary, path)` is given, which then decides. An OSError comes out
    as M2HError that names `path`.
    """
    path = Path(path).resolve()
    if take_place is None and path.exists():
        raise M2HError(f"{path} exists: give a folder that does not")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{_fitting(path)[0]}.", dir=path.parent))
    except OSError as error:
        raise M2HError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders for their owner alone
        (take_place or Path.rename)(temporary, path)
    except OSError as error:
        raise M2HError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Write `content` to `path` in one step. Raises M2HError when that cannot be."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, with a last line break, in one step."""
    return write_bytes(path, (text.rstrip("\n") + "\n").encode())


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Raises M2HError where a file cannot be written to `path`: before long work, not after it."""
    path = Path(path)
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise M2HError(f"cannot write {path}: the name is longer than {NAME_BYTES} bytes")
    if path.is_dir():
        raise M2HError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise M2HError(f"cannot write {path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise M2HError(f"cannot write {path}: {path.parent} is not yours to write")
    return path


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` where there is none. Raises M2HError when that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M2HError(f"cannot write to {path}: {error.strerror or error}") from None
    return Path(path)
