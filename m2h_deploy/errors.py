"""The errors that m2h-deploy raises on purpose: one clear line each, and an exit code."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class M2HError(Exception):
    """Bad input or a bad environment: what is wrong, where, and what to do, in one line. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class CheckFailed(M2HError):  # noqa: N818 (a verdict, not a fault)
    """The check that was asked for ran and failed (export check, parity gate, self-test). Exit code 1."""

    exit_code = 1


def one_line(text: str) -> str:
    """Return `text` with its control characters as escapes: a file's name may hold line breaks and terminal codes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
