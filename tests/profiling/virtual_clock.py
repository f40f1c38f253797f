"""A clock for simulations: what is timed with it comes out exact."""

from __future__ import annotations


class VirtualClock:
    """A clock that only moves when it is told to."""

    def __init__(self, start: int = 0) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def sleep_until(self, moment: int) -> None:
        self._now = max(self._now, moment)

    def advance(self, nanoseconds: int) -> None:
        self._now += nanoseconds
