"""Hands items from one thread to the next."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue that can end. When it is full, `put` waits, or with `replace` throws the oldest item out."""

    def __init__(self, capacity: int, *, replace: bool = False) -> None:
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._replace = replace
        self._changed = threading.Condition()
        self._ended = False

    def put(self, item: T) -> T | None:
        """Add `item`. What found no place comes back: the oldest item, or `item` itself when the channel has ended."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._replace and not self._ended:
                self._changed.wait()
            if self._ended:
                return item
            thrown = self._items.popleft() if len(self._items) >= self._capacity else None
            self._items.append(item)
            self._changed.notify_all()
            return thrown

    def get(self) -> T | None:
        """The oldest item, waiting for one; None when the channel has ended and is empty."""
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def end(self, *, discard: bool = False) -> None:
        """Take no more items; `discard` also throws out those that wait."""
        with self._changed:
            self._ended = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
