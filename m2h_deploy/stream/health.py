"""Counters of a stream: the outcome of each frame, and the problems that occurred."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

#: Number of problems that are kept as text.
_KEPT = 20


@dataclass(frozen=True)
class Health:
    """Snapshot of a stream's counters.

    Every frame that was read is in exactly one of the counters that FATES names, or in work.
    """

    read: int = 0
    """Frames that the source gave, including unreadable ones. Equals the id of the next frame."""
    delivered: int = 0
    """Frames returned to the caller."""
    dropped: int = 0
    """Frames replaced by a newer one (policy `latest`)."""
    corrupt: int = 0
    """Frames that could not be read, or were not pictures."""
    nonfinite: int = 0
    """Frames whose outputs contain NaN or infinity."""
    failed: int = 0
    """Frames for which the engine raised an error."""
    stuck: int = 0
    """Frames for which the engine did not return in time."""
    canceled: int = 0
    """Frames in work when the stream was closed."""
    reconnects: int = 0
    """Number of times that a failed source was opened again and gave a frame."""
    restarts: int = 0
    """Number of times that a stuck engine was replaced by a new one."""
    problems: tuple[str, ...] = ()
    """The most recent problems, as text."""

    @property
    def in_work(self) -> int:
        """Number of frames that were read and have no outcome yet."""
        return self.read - sum(getattr(self, name) for name in FATES)

    @property
    def ok(self) -> bool:
        """Whether no problem occurred so far; a dropped frame is not a problem."""
        return not any((self.corrupt, self.nonfinite, self.failed, self.stuck, self.reconnects))


#: Possible outcomes of a frame.
FATES = ("delivered", "dropped", "corrupt", "nonfinite", "failed", "stuck", "canceled")

_COUNTERS = ("read", *FATES, "reconnects", "restarts")


class HealthRecord:
    """Thread-safe counters for `Health`."""

    def __init__(self, on_problem: Callable[[str], None] | None = None) -> None:
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._problems: deque[str] = deque(maxlen=_KEPT)
        self._on_problem = on_problem
        self._settled = False

    def count(self, name: str, problem: str | None = None) -> int:
        """Increment the counter `name`, and report `problem` if given.

        Returns:
            The counter before the increment.
        """
        with self._lock:
            before = self._counts[name]
            if not (self._settled and name in (*FATES, "read")):  # the frame is already counted as canceled
                self._counts[name] = before + 1
        if problem is not None:
            self.report(problem)
        return before

    def report(self, problem: str) -> None:
        """Keep the text of a problem, and pass it to `on_problem`."""
        with self._lock:
            self._problems.append(problem)
        if self._on_problem is not None:
            self._on_problem(problem)

    def settle(self) -> None:
        """Count all frames in work as canceled, and ignore later counts of frames."""
        with self._lock:
            self._settled = True
            self._counts["canceled"] += self._counts["read"] - sum(self._counts[name] for name in FATES)

    def snapshot(self) -> Health:
        """Return the current counters and the most recent problems."""
        with self._lock:
            return Health(**self._counts, problems=tuple(self._problems))
