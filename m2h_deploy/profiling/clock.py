"""Read and wait for time in whole nanoseconds."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that can be read and waited for."""

    def now(self) -> int:
        """Return nanoseconds since an arbitrary reference."""
        ...

    def sleep_until(self, moment: int) -> None:
        """Sleep until `moment`; return immediately if it has passed."""
        ...


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> int:
        """Return nanoseconds of the performance counter."""
        return time.perf_counter_ns()

    def sleep_until(self, moment: int) -> None:
        """Sleep until `moment`; return immediately if it has passed."""
        while (left := moment - time.perf_counter_ns()) > 0:
            time.sleep(left / 1e9)
