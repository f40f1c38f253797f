"""A virtual clock for simulations, which gives exact times."""

from __future__ import annotations


class VirtualClock:
    """A clock that moves only by `advance` and `sleep_until`."""

    def __init__(self, start: int = 0) -> None:
        self._now = start

    def now(self) -> int:
        return self._now

    def sleep_until(self, moment: int) -> None:
        self._now = max(self._now, moment)

    def advance(self, nanoseconds: int) -> None:
        self._now += nanoseconds
