"""Read the text files of sequences line by line, and count problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2h_deploy.causes import failure
from m2h_deploy.errors import one_line
from m2h_deploy.files.names import require_file


def data_lines(path: Path, what: str) -> list[tuple[int, str]]:
    """Return the numbered lines of a text file without blank lines and comments (#).

    Raises:
        M2HError: The file is missing, unreadable or not text; `what` names it.
    """
    require_file(path, what)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise failure(error, f"cannot read {path}", f"{path}: {what} is not a text file") from error
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def counted(problem: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return a line that states a problem, how often it occurs and where first; no line if it does not occur."""
    if not names:
        return ()
    return (one_line(f"{problem}: {len(names)}" + (f", the first {names[0]}" if names[0] else "")),)
