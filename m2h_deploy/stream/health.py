"""What went wrong with a stream and what became of each frame, in counters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

#: Problems that are kept in words.
_KEPT = 20


@dataclass(frozen=True)
class Health:
    """A moment of a stream. Every frame that was read is in exactly one of the other counters of frames."""

    read: int = 0
    """Frames that the source gave, unreadable ones included. The id of the next frame."""
    delivered: int = 0
    """Handed to the caller."""
    dropped: int = 0
    """Thrown out for a newer one (policy `latest`)."""
    corrupt: int = 0
    """Could not be read, or were not pictures."""
    nonfinite: int = 0
    """The engine gave NaN or infinity."""
    failed: int = 0
    """The engine raised an error."""
    stuck: int = 0
    """The engine did not come back in time."""
    canceled: int = 0
    """In work when the stream was closed."""
    reconnects: int = 0
    """Times that a source which had died came back."""
    restarts: int = 0
    """Times that a stuck engine was opened again."""
    problems: tuple[str, ...] = ()
    """The last of them in words."""

    @property
    def in_work(self) -> int:
        """Frames between the source and the caller."""
        return self.read - sum(getattr(self, name) for name in FATES)

    @property
    def ok(self) -> bool:
        """Nothing went wrong so far; a dropped frame is not a fault."""
        return not any((self.corrupt, self.nonfinite, self.failed, self.stuck, self.reconnects))


#: Where a frame can end.
FATES = ("delivered", "dropped", "corrupt", "nonfinite", "failed", "stuck", "canceled")

_COUNTERS = ("read", *FATES, "reconnects", "restarts")


class HealthRecord:
    """Counts for `Health`. Any thread may count."""

    def __init__(self, on_problem: Callable[[str], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._problems: deque[str] = deque(maxlen=_KEPT)
        self._on_problem = on_problem
        self._settled = False

    def count(self, name: str, problem: str | None = None) -> int:
        """One more of `name`; how many there were before."""
        with self._lock:
            before = self._counts[name]
            if not (self._settled and name in (*FATES, "read")):  # it counts as canceled already
                self._counts[name] = before + 1
        if problem is not None:
            self.report(problem)
        return before

    def report(self, problem: str) -> None:
        """Keep a problem in words, and tell it to whoever asked."""
        with self._lock:
            self._problems.append(problem)
        if self._on_problem is not None:
            self._on_problem(problem)

    def settle(self) -> None:
        """What is in work now counts as canceled, and no frame is counted from here on."""
        with self._lock:
            self._settled = True
            self._counts["canceled"] += self._counts["read"] - sum(self._counts[name] for name in FATES)

    def snapshot(self) -> Health:
        with self._lock:
            return Health(**self._counts, problems=tuple(self._problems))
