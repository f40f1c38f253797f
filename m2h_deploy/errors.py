"""Errors that m2h-deploy raises deliberately: one clear line each, and an exit code."""

from __future__ import annotations

import re
from typing import Any

#: What an extra needs beside its packages.
_CONDITIONS = {
    "jetson": ", in an environment of python3 -m venv --system-site-packages, which sees JetPack's own TensorRT"
}

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class M2HError(Exception):
    """Invalid input or environment: what is wrong, where, and what to do, in one line. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class BundleError(M2HError):
    """A bundle that is missing, damaged or of another version."""


class ImageError(M2HError):
    """An image that cannot be used: damaged, or of a wrong shape, type or size."""


class EngineError(M2HError):
    """An engine that cannot be opened here, fails, or was closed."""


class EngineTimeout(EngineError):  # noqa: N818 (names the event)
    """An engine that did not finish in time: it is stuck, or was and has been replaced."""


class MissingExtra(M2HError):  # noqa: N818 (names the missing part)
    """A package of an extra that is not installed, or is broken."""


class CheckFailed(M2HError):  # noqa: N818 (a verdict, not a fault)
    """A requested check ran and failed (export check, parity gate, self-test). Exit code 1.

    `report` is the `export.CheckReport` of an export's check; None for other checks.
    """

    exit_code = 1

    def __init__(self, message: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.report = report


def one_line(text: str) -> str:
    """Return `text` with control characters escaped: file names may contain line breaks and terminal codes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def install_extra(extra: str) -> str:
    """Return how to install an extra: from a clone or a wheel file, because no package index has this project."""
    return (
        f"in the clone of m2h-deploy run pip install -e '.[{extra}]', or with a wheel pip install 'FILE.whl[{extra}]'"
        + _CONDITIONS.get(extra, "")
    )


def engine_error(error: M2HError) -> M2HError:
    """Return an engine's M2HError as an EngineError; subclasses are returned unchanged."""
    return EngineError(str(error)) if type(error) is M2HError else error


def missing_extra(
    module: str, extra: str, user: str = "this command", *, error: Exception | None = None
) -> MissingExtra:
    """Build the error for a missing package of an extra.

    Args:
        module: The package.
        extra: The extra of this project that installs it.
        user: What needs it; the beginning of the message.
        error: The exception of the import; a package that is installed but broken is not reported as missing.
    """
    reason = "is not installed"
    if error is not None and not isinstance(error, ModuleNotFoundError):
        reason = f"cannot be imported ({first_line(error)})"
    return MissingExtra(f"{user} needs {module}, which {reason}: {install_extra(extra)}")
