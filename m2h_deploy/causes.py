"""Distinguish faults of the machine (a full disk, no permission, no memory) from faults of the input."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from m2h_deploy.errors import M2HError, first_line

#: Errors of the operating system that libraries report as text.
_CODES = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
    errno.EFBIG,
)

#: Errors that cannot be caused by a file's content, even if they are only the context of another error.
_EXHAUSTED = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}

NO_SPACE = os.strerror(errno.ENOSPC)
NO_MEMORY = "not enough memory"
_NO_MEMORY = re.compile(
    r"bad_alloc|bad allocation|(?:not enough|out of|insufficient) memory|(?:can't|cannot|failed to) allocate memory",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"system error number (\d+)|errno = (\d+)|os error (\d+)")


class MachineError(M2HError):
    """The machine failed: no space, no memory, no permission. The message names the place and the cause."""


def machine_fault(error: BaseException) -> str | None:
    """Return the operating system's message for the fault behind `error`, or None if the machine is not at fault.

    Follows the chain of causes. Errors of libraries that hide the error number are recognized by their message.
    """
    for link, direct in _chain(error):
        if isinstance(link, MemoryError):
            return NO_MEMORY
        if isinstance(link, OSError) and link.errno is not None and link.strerror:
            if direct or link.errno in _EXHAUSTED:
                return link.strerror
        elif direct and (words := _fault_in_text(str(link))) is not None:
            return words
    return None


def reason(error: BaseException) -> str:
    """Return the fault of the machine behind `error`, or else the first line of its message."""
    return machine_fault(error) or first_line(error)


def machine_words(error: OSError | MemoryError) -> str:
    """Return an error of the operating system in one line, with the file that it concerns."""
    name = getattr(error, "filename", None)
    return f"{os.fsdecode(name)}: {reason(error)}" if isinstance(name, (str, bytes)) else reason(error)


def failure(
    error: BaseException, action: str, otherwise: str | None = None, *, kind: type[M2HError] = M2HError
) -> M2HError:
    """Return the error to raise for `error`, which a library raised.

    Args:
        error: The caught exception.
        action: The failed action, as "cannot read FILE". Used with the cause if the machine is at fault.
        otherwise: The whole message if it is not, as "FILE is not an ONNX file"; by default the action and the first
            line of the error.
        kind: Type of the error if the machine is not at fault.
    """
    fault = machine_fault(error)
    if fault is None:
        return kind(otherwise or f"{action}: {first_line(error)}")
    return MachineError(f"{action}: {fault}")


def no_space(place: str | os.PathLike[str], needed: int = 1 << 20) -> bool:
    """Return whether the file system of `place` has less than `needed` bytes or no inode left."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < needed or (found.f_files > 0 and found.f_favail == 0)


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield `error` and its causes; False marks an error that was only being handled when another one was raised."""
    seen: set[int] = set()
    link: BaseException | None = error
    direct = True
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link, direct
        if link.__cause__ is not None:
            link = link.__cause__
        elif not link.__suppress_context__:
            link, direct = link.__context__, False
        else:
            link = None


def _fault_in_text(text: str) -> str | None:
    if _NO_MEMORY.search(text):
        return NO_MEMORY
    number = _NUMBER.search(text)
    if number is not None:
        return os.strerror(int(next(filter(None, number.groups()))))
    return next((words for code in _CODES if (words := os.strerror(code)) in text), None)
