"""Standard streams that can be closed, a broken pipe, a file on a full disk, or have any encoding."""

from __future__ import annotations

import codecs
import errno
import io
import os
import signal
import sys
from types import FrameType
from typing import TextIO

from m2h_deploy.causes import MachineError, reason

#: Replacements of characters that the encoding of a stream lacks.
_PLAIN = {
    "✓": "+",
    "✗": "x",
    "…": "...",
    "∞": "inf",
    "°": " degrees",
    "·": ".",
}


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle encoding errors: replace special characters, and write undecodable bytes of file names unchanged."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _PLAIN.get(character, "?"), error.start + 1


codecs.register_error("m2h-plain", _plain)


class _Output(io.TextIOWrapper):
    """stdout or stderr. Once its reader has ended (a closed pipe, a lost terminal), further output is dropped."""

    def __init__(self, number: int, *, results: bool, encoding: str) -> None:
        raw = io.FileIO(number, "wb", closefd=False)
        self._number, self._results = number, results
        self._gone = {errno.EPIPE, errno.EBADF} | ({errno.EIO, errno.ENXIO} if raw.isatty() else set())
        # stderr and terminals are line-buffered, so that each line appears immediately.
        super().__init__(io.BufferedWriter(raw), encoding, "m2h-plain", line_buffering=not results or raw.isatty())

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Redirect the stream to the null device. Raises M2HError if results are lost that a reader still expects."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        super().flush()
        if self._results and error.errno not in self._gone:
            raise MachineError(f"cannot write to standard output: {reason(error)}") from None


def prepare_streams() -> None:
    """Make stdin, stdout and stderr safe to use for the rest of the process; call it first in a program."""
    _open_closed()
    for name, number in (("stdout", 1), ("stderr", 2)):
        given: TextIO | None = getattr(sys, name)
        if given is None or isinstance(given, io.TextIOWrapper):  # else it is redirected already
            encoding = given.encoding if given is not None else "utf-8"
            setattr(sys, name, _Output(number, results=number == 1, encoding=encoding))


def _open_closed() -> None:
    """Open the null device for each closed standard stream: otherwise the next file would get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end a command like Ctrl-C: temporary files are removed, finished results are kept.

    SIGHUP stays ignored if the parent process has set it to be ignored, as nohup does.
    """
    for number in wanted_signals((signal.SIGTERM, signal.SIGHUP)):
        signal.signal(number, _interrupt)


def wanted_signals(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Return `numbers`, without SIGHUP if the parent process has set it to be ignored."""
    return [n for n in numbers if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def error_stream(number: int) -> TextIO:
    """Return a text stream to the open file descriptor `number` that behaves as stderr does."""
    return _Output(number, results=False, encoding=sys.stderr.encoding)
