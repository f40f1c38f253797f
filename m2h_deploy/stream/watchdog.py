"""What tells a stream that its engine does not come back."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Generic, TypeVar

from m2h_deploy.runtime.runtime import Engine

Item = TypeVar("Item")


class Watch(Generic[Item]):
    """Which item the engine has, and since when. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = 0
        self._current: tuple[Item, Engine, threading.Thread, float] | None = None

    def begin(self, item: Item, engine: Engine) -> int:
        """The engine gets `item` from the calling thread; the number is that of the turn."""
        with self._lock:
            self._turn += 1
            self._current = (item, engine, threading.current_thread(), monotonic())
            return self._turn

    def end(self, turn: int) -> bool:
        """False where the item of this turn was given up in between."""
        with self._lock:
            if self._current is None or turn != self._turn:
                return False
            self._current = None
            return True

    def overdue(self, timeout: float) -> tuple[Item, Engine, threading.Thread] | None:
        """The item that an engine has had for longer than `timeout` seconds, the engine, and the thread that waits.

        The item counts as given up from here on.
        """
        with self._lock:
            if self._current is None or monotonic() - self._current[3] < timeout:
                return None
            item, engine, thread, _ = self._current
            self._current = None
            return item, engine, thread
