"""Defer Ctrl-C to the end of a training step, so that the saved state is complete."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from m2h_deploy.stdio import wanted_signals


class Interrupt:
    """Context in which the first Ctrl-C, SIGTERM or SIGHUP sets `requested`; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        # Python delivers signals only to the main thread, which alone may set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in wanted_signals((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if an interrupt was requested."""
        if self.requested:
            raise KeyboardInterrupt
