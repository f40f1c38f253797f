"""Choose which images to process: every n-th, and only those that are recent enough."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Verdict(NamedTuple):
    """Decision about an image."""

    fate: Literal["take", "skip", "stale"]
    lag: float | None
    """Seconds between its stamp and now; None if unknown."""
    late: bool
    """Whether it is older than one of the limits."""


class FramePolicy:
    """Skip and lag, with the order and names of mono_hydra_perception.

    `skip_frequency` n takes the first image and every n-th after it. An image older than `max_lag` seconds is stale,
    one older than `warn_lag` is late; 0 disables either limit. The lag of an image is unknown if its stamp is missing
    or in the future.
    """

    def __init__(self, skip_frequency: int = 1, warn_lag: float = 0.0, max_lag: float = 0.0) -> None:
        self._skip, self._warn, self._max = skip_frequency, warn_lag, max_lag
        self._count = 0

    def decide(self, stamp_ns: int, now_ns: int) -> Verdict:
        """Decide about the next image; `now_ns` is the time on the clock that stamps the images."""
        lag = lag_seconds(stamp_ns, now_ns)
        turn, self._count = self._count, (self._count + 1) % self._skip
        if turn:
            return Verdict("skip", lag, False)
        late = lag is not None and 0 < self._warn < lag
        stale = lag is not None and 0 < self._max < lag
        return Verdict("stale" if stale else "take", lag, late or stale)


def lag_seconds(stamp_ns: int, now_ns: int) -> float | None:
    """Return the seconds from a stamp to now; None if one of them is not set, or the stamp is in the future."""
    if stamp_ns <= 0 or now_ns <= 0 or now_ns < stamp_ns:
        return None
    return (now_ns - stamp_ns) * 1e-9
