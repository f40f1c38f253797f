"""Atomic file and folder writes, temporary folders, and checks of destinations before long work."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m2h_deploy.causes import NO_SPACE, MachineError, machine_fault, no_space, reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.names import NAME_BYTES, shorten

#: Bytes that a temporary name adds to the stem (process, random part, ".tmp"), and the longest suffix of a format.
_ADDED_BYTES, _LONGEST_SUFFIX = 40, 16


class NewFile:
    """A file that is written incrementally: to `temporary`, which has its suffix, until `finish`.

    The temporary file is in the folder of `path` and replaces `path` atomically; a link is replaced, not followed. If
    that is impossible (a device, a pipe, a file that is itself a mount point, a folder without write permission), the
    temporary file is in the temporary folder, and `finish` copies it into `path`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._in_place = _only_in_place(self.path)
        folder = temporary_root() if self._in_place else self.path.parent
        # Threads share a process id: the random part distinguishes two writers of one file.
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        stem, suffix = _fitting(self.path)
        self.temporary = folder / f".{stem}.{own}.tmp{suffix}"

    def finish(self) -> None:
        """Move the temporary file to `path`. Raises M2HError, naming `path`, if that fails."""
        try:
            if self._in_place:
                with self.temporary.open("rb") as source, self.path.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                self.temporary.chmod(0o666 & ~_umask())  # some libraries write files that only their owner can read
                self.temporary.replace(self.path)
        except OSError as error:
            raise MachineError(f"cannot write {self.path}: {reason(error)}") from None
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary file. Idempotent, and without effect after `finish`."""
        with suppress(OSError):  # the cause was already reported when writing failed
            self.temporary.unlink()

    def failed(self, error: Exception) -> M2HError | None:
        """Return the error to raise if `error` came from writing this file; None for any other."""
        if self._in_place:
            root = self.temporary.parent
            return _write_failure(error, root, f"cannot write to the temporary folder {root}", alone=True)
        return _write_failure(error, self.temporary.parent, f"cannot write {self.path}", alone=True)


def _only_in_place(path: Path) -> bool:
    """Return whether `path` itself can be written but no file can be renamed to it."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if stat.S_ISDIR(mode):
        return False
    # A rename would replace the link /dev/stdout for all programs of the machine.
    if not stat.S_ISREG(mode) or {"/dev", "/proc"} & {str(parent) for parent in path.absolute().parents}:
        return True
    return _is_mount(path) or (not os.access(path.parent, os.W_OK) and os.access(path, os.W_OK))


def _is_mount(path: Path) -> bool:
    """Return whether `path` is a mount point, including bind mounts of the same file system or of a single file."""
    if os.path.ismount(path):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    wanted = os.fsencode(path.resolve())
    points = (line.split(b" ")[4] for line in lines if line.count(b" ") > 4)
    return any(re.sub(rb"\\(\d{3})", lambda code: bytes([int(code[1], 8)]), point) == wanted for point in points)


def is_temporary(name: str, of: str) -> bool:
    """Return whether a file of this name is a temporary file that `NewFile` makes for `of`."""
    stem, suffix = (re.escape(part) for part in _fitting(Path(of)))
    return re.fullmatch(rf"\.{stem}\.\d+-[0-9a-f]{{8}}\.tmp{suffix}", name) is not None


def _fitting(path: Path) -> tuple[str, str]:
    """Return stem and suffix of a temporary name, shortened so that the added part fits into the name's limit."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= _LONGEST_SUFFIX else ""
    return shorten(path.stem, NAME_BYTES - _ADDED_BYTES - _LONGEST_SUFFIX), suffix


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path` that replaces `path` if the block succeeds; see `NewFile`.

    If the block raises, including on Ctrl-C, `path` is unchanged and the temporary file is removed. A write error is
    raised as M2HError that names `path`.
    """
    file = NewFile(path)
    try:
        yield file.temporary
        file.finish()
    except MachineError:
        raise
    except Exception as error:
        failed = file.failed(error)
        if failed is None:
            raise
        raise failed from None
    finally:
        file.discard()


@contextmanager
def whole_folder(path: str | os.PathLike[str], *, replace: bool = False, last: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block succeeds, and is removed otherwise.

    An existing `path` is rejected unless it is an empty folder or `replace` is given; a replaced one is restored if
    that fails. The temporary folder is next to `path`. If nothing can be renamed to `path` (a mount point, a parent
    without write permission), it is inside `path`, and its files are moved up one by one, the one named `last` after
    all others. A write error is raised as M2HError that names `path`.
    """
    path = check_whole_folder(path, replace=replace)
    inside = _only_inside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{_fitting(path)[0]}.", dir=path if inside else path.parent))
    except OSError as error:
        raise MachineError(f"cannot write {path}: {reason(error)}") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes folders that only their owner can access
        _move_up(temporary, path, last) if inside else _swap(temporary, path)
    except MachineError:
        raise
    except Exception as error:
        failed = _write_failure(error, temporary, f"cannot write {path}")
        if failed is None:
            raise
        raise failed from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _only_inside(path: Path) -> bool:
    return path.is_dir() and (_is_mount(path) or not os.access(path.parent, os.W_OK))


def _swap(new: Path, path: Path) -> None:
    """Rename `new` to `path`; the previous folder is restored if that fails or is interrupted."""
    if not path.exists():
        new.replace(path)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{_fitting(path)[0]}.old.", dir=path.parent))
    try:
        path.replace(old)
        new.replace(path)
    except BaseException:
        if not path.exists() and any(old.iterdir()):
            old.replace(path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _move_up(new: Path, path: Path, last: str | None) -> None:
    """Move the contents of `new`, a folder in `path`, to `path`, replacing all else; undone if that fails."""
    old = Path(tempfile.mkdtemp(prefix=f".{_fitting(path)[0]}.old.", dir=path))
    moves = [(entry, old / entry.name) for entry in path.iterdir() if entry not in (new, old)]
    moves.sort(key=lambda move: move[0].name != last)
    moves += sorted(((entry, path / entry.name) for entry in new.iterdir()), key=lambda move: move[0].name == last)
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            done.append((source, target))
            source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists() and not source.exists():
                target.rename(source)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def scratch_folder(prefix: str, root: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Make a temporary folder in `root` (default: the machine's temporary folder) and remove it after the block.

    A write error in it is raised as M2HError that names the temporary folder.
    """
    place = Path(root) if root is not None else temporary_root()
    advice = "" if root is not None else "; free some space there, or set TMPDIR to a folder that has it"
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    except OSError as error:
        raise MachineError(f"cannot write to the temporary folder {place}: {reason(error)}{advice}") from None
    try:
        yield folder
    except MachineError:
        raise
    except Exception as error:
        failed = _write_failure(error, folder, f"cannot write to the temporary folder {place}")
        if failed is None:
            raise
        raise MachineError(f"{failed}{advice}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_root() -> Path:
    """Return the machine's temporary folder. Raises M2HError if no temporary folder can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        places = os.environ.get("TMPDIR") or "/tmp"
        raise MachineError(
            f"no temporary folder can be written ({places}): set TMPDIR to a folder with space"
        ) from None


def _write_failure(error: Exception, place: Path, message: str, *, alone: bool = False) -> MachineError | None:
    """Return `message` with the cause if `error` came from writing to the folder `place`; None for any other.

    Libraries raise various errors when a write fails, so a full disk is detected by its free space. With `alone`, an
    operating system's error without a file name is attributed to `place`.
    """
    if isinstance(error, OSError):
        names = [
            Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))
        ]
        if any(name.absolute().is_relative_to(place.absolute()) for name in names) or (alone and not names):
            return MachineError(f"{message}: {reason(error)}")
    if no_space(place):
        return MachineError(f"{message}: {NO_SPACE}")
    space = machine_fault(error) == NO_SPACE
    return MachineError(f"{message}: {NO_SPACE}") if alone and space else None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: str | os.PathLike[str], content: bytes | memoryview) -> Path:
    """Write `content` to `path` atomically. Raises M2HError on failure."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8 with a final line break, atomically; undecodable bytes of file names are escaped."""
    return write_bytes(path, (text.rstrip("\n") + "\n").encode("utf-8", "backslashreplace"))


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return `path`. Raises M2HError if a file cannot be written there; call it before long work."""
    path = Path(path)
    if len(os.fsencode(path.name)) > NAME_BYTES:
        raise M2HError(f"cannot write {path}: the name is longer than {NAME_BYTES} bytes")
    if path.is_dir():
        raise M2HError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise M2HError(f"cannot write {path}: there is no folder {path.parent}")
    if not _only_in_place(path):
        _check_access(path.parent, path)
    return path


def check_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path`. Raises M2HError if no files can be made in a folder `path`; creates nothing."""
    path = Path(path)
    above = next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))
    if not above.is_dir():
        raise M2HError(f"cannot write to {path}: {above} is not a folder")
    _check_access(above, path)
    return path


def check_whole_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Path:
    """Return `path` as an absolute path. Raises the M2HError of `whole_folder` if that would fail; creates nothing."""
    path = Path(path).resolve()
    if not path.is_dir():
        if path.exists() and not replace:
            raise M2HError(f"{path} exists: give a folder that does not")
        check_folder(path.parent)
        return path
    if not replace and any(path.iterdir()):
        raise M2HError(f"{path} exists: give a folder that does not, or an empty one")
    _check_access(path if _only_inside(path) else path.parent, path)
    return path


#: Bytes that a recording needs in order to be finished: its index, and the data buffered by its writer.
_SPARE_BYTES = 8 << 20


def check_space(folder: Path, target: str | os.PathLike[str]) -> None:
    """Raise M2HError if the disk of `folder` is nearly full, while the file `target` can still be finished."""
    found = os.statvfs(folder)
    if found.f_bavail * found.f_frsize < _SPARE_BYTES:
        raise MachineError(f"cannot write more to {target}: {NO_SPACE}; it ends here")


@contextmanager
def library_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield `path` as a string for a library that accepts only UTF-8 names: its own, or that of a link to it."""
    if _fits(os.fspath(path)):
        yield os.fspath(path)
        return
    full = Path(path).absolute()
    with scratch_folder("m2h-name-") as folder:
        link = folder / "link"
        if _fits(full.name):  # link the folder, so that files next to this one are found too
            link.symlink_to(full.parent)
            yield os.fspath(link / full.name)
        else:
            link = link.with_suffix(full.suffix if _fits(full.suffix) else "")
            link.symlink_to(full)
            yield os.fspath(link)


def printable(name: str) -> str:
    """Return a name as text for any format: bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def _fits(name: str) -> bool:
    try:
        return os.fsencode(name) == name.encode()
    except UnicodeEncodeError:
        return False


def _check_access(folder: Path, target: Path) -> None:
    if os.access(folder, os.W_OK | os.X_OK):
        return
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    why = "is on a read-only file system" if read_only else "may not be written by this user"
    raise MachineError(f"cannot write {target}: {folder} {why}; give another place")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder `path` if it does not exist. Raises M2HError if no files can be made in it."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot write to {path}: {reason(error)}") from None
    _check_access(path, path)
    return path
