"""Progress callbacks of long operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: Called with the name of the operation, the amount done, the total amount (None if unknown), and a note.
Progress = Callable[[str, int, "int | None", str], None]


def silent(what: str, done: int, total: int | None, note: str) -> None:
    """Ignore the progress."""


def losses_note(losses: Mapping[str, float]) -> str:
    """Format losses as "name value"; a line can break only between two of them."""
    return "  ".join(f"{name}\N{NO-BREAK SPACE}{value:.3f}" for name, value in losses.items())
