"""Progress of long work, as its caller is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping

#: Called with what is being done, how much of it is done, of how much (None where unknown), and a note.
Progress = Callable[[str, int, "int | None", str], None]


def silent(what: str, done: int, total: int | None, note: str) -> None:
    """Ignore the progress."""


def losses_note(losses: Mapping[str, float]) -> str:
    """Name each loss beside its value; a line breaks only between two of them."""
    return "  ".join(f"{name}\N{NO-BREAK SPACE}{value:.3f}" for name, value in losses.items())
