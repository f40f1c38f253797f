"""Watchdog that detects an engine that does not return."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Generic, TypeVar

from m2h_deploy.runtime.runtime import Engine

Item = TypeVar("Item")


class Watch(Generic[Item]):
    """Record of the item that the engine is working on, and since when. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = 0
        self._current: tuple[Item, Engine, threading.Thread, float] | None = None

    def begin(self, item: Item, engine: Engine) -> int:
        """Record that the engine starts on `item` in the calling thread; return the number of this turn."""
        with self._lock:
            self._turn += 1
            self._current = (item, engine, threading.current_thread(), monotonic())
            return self._turn

    def end(self, turn: int) -> bool:
        """Record that the turn is over; return False if its item was given up meanwhile."""
        with self._lock:
            if self._current is None or turn != self._turn:
                return False
            self._current = None
            return True

    def overdue(self, timeout: float) -> tuple[Item, Engine, threading.Thread] | None:
        """Give up the item that an engine has been working on for longer than `timeout` seconds.

        Returns:
            The item, the engine and the thread that waits for it; None if no item is overdue.
        """
        with self._lock:
            if self._current is None or monotonic() - self._current[3] < timeout:
                return None
            item, engine, thread, _ = self._current
            self._current = None
            return item, engine, thread
