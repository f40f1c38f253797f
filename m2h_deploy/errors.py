"""The errors that m2h-deploy raises on purpose: one clear line each, and an exit code."""

from __future__ import annotations

import re
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class M2HError(Exception):
    """Bad input or a bad environment: what is wrong, where, and what to do, in one line. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class BundleError(M2HError):
    """A bundle that is missing, damaged or of another version."""


class ImageError(M2HError):
    """An image that cannot be used: damaged, or of a wrong shape, type or size."""


class EngineError(M2HError):
    """An engine that cannot be opened here, fails, or was closed."""


class EngineTimeout(EngineError):  # noqa: N818 (what happened)
    """An engine that did not finish in time: it is stuck, or was and has been replaced."""


class MissingExtra(M2HError):  # noqa: N818 (what is missing)
    """A package of an extra that is not installed, or is broken."""


class CheckFailed(M2HError):  # noqa: N818 (a verdict, not a fault)
    """The check that was asked for ran and failed (export check, parity gate, self-test). Exit code 1.

    `report` is what the check of an export found, an `export.CheckReport`; None of other checks.
    """

    exit_code = 1

    def __init__(self, message: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def one_line(text: str) -> str:
    """Return `text` with its control characters as escapes: a file's name may hold line breaks and terminal codes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def install_extra(extra: str) -> str:
    """Say how to install an extra. No package index has this project, so it is from a clone or a wheel file."""
    return (
        f"in the clone of m2h-deploy run pip install -e '.[{extra}]', or with a wheel pip install 'FILE.whl[{extra}]'"
    )


def engine_error(error: M2HError) -> M2HError:
    """Return what an engine raised as an EngineError; an error of another kind stays what it is."""
    return EngineError(str(error)) if type(error) is M2HError else error


def missing_extra(
    module: str, extra: str, user: str = "this command", *, error: Exception | None = None
) -> MissingExtra:
    """Build the error for a package of an extra that is not there.

    Args:
        module: the package.
        extra: the extra of this project that installs it.
        user: what needs it, the beginning of the line.
        error: what importing it raised; a package that is there but broken is not called missing.
    """
    reason = "is not installed"
    if error is not None and not isinstance(error, ModuleNotFoundError):
        reason = f"cannot be imported ({first_line(error)})"
    return MissingExtra(f"{user} needs {module}, which {reason}: {install_extra(extra)}")
