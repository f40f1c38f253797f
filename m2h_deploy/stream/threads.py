"""The threads of a stream: started together, and stopped within a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic


class Threads:
    """Daemon threads whose errors are passed on."""

    def __init__(self, on_error: Callable[[str, Exception], None]) -> None:
        self.stop = threading.Event()
        """Set when the threads have to end."""
        self._on_error = on_error
        self._threads: list[threading.Thread] = []

    @property
    def started(self) -> bool:
        """True once a thread was started or `stop` was set."""
        return bool(self._threads) or self.stop.is_set()

    def spawn(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread; an exception of `work` goes to `on_error` with the name."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:  # a thread must not end silently
                self._on_error(name, error)

        thread = threading.Thread(target=guarded, name=f"m2h-{name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def forget(self, thread: threading.Thread) -> None:
        """Do not wait for a stuck thread."""
        self._threads.remove(thread)

    def join(self, patience: float) -> None:
        """Wait for all threads to end, `patience` seconds at most."""
        deadline = monotonic() + patience
        for thread in tuple(self._threads):
            # Ctrl-C can come before the last thread has started.
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(max(0.0, deadline - monotonic()))
