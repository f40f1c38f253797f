"""Thread-safe queue between two stages of a stream."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """Bounded queue that can be ended.

    When it is full, `put` waits, or with `replace` drops the oldest item.
    """

    def __init__(self, capacity: int, *, replace: bool = False) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._replace = replace
        self._changed = threading.Condition()
        self._ended = False

    def put(self, item: T) -> T | None:
        """Add an item.

        Returns:
            The item without a place in the queue: the dropped oldest one, or `item` itself if the channel has ended;
            otherwise None.
        """
        with self._changed:
            while len(self._items) >= self._capacity and not self._replace and not self._ended:
                self._changed.wait()
            if self._ended:
                return item
            thrown = self._items.popleft() if len(self._items) >= self._capacity else None
            self._items.append(item)
            self._changed.notify_all()
            return thrown

    def get(self, *, wait: bool = True) -> T | None:
        """Remove and return the oldest item.

        Returns None once the channel has ended and is empty, or at once if it is empty and `wait` is off.
        """
        with self._changed:
            while wait and not self._items and not self._ended:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self, *, discard: bool = False) -> None:
        """Accept no more items, and wake all waiting threads; `discard` also drops the items in the queue."""
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
