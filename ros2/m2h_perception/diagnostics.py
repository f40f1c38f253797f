"""Diagnostics of the node: level, message and values of a diagnostic_msgs/DiagnosticStatus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.stream.health import Health

OK, WARN, ERROR = 0, 1, 2

#: Counters of `Health` for frames lost to a fault.
_FAULTS = ("corrupt", "nonfinite", "failed", "stuck")

#: Counters of images outside of the stream.
_TOTALS = ("received", "skipped", "stale", "without CameraInfo", "dropped before", "published")


@dataclass(frozen=True)
class Report:
    """One diagnostic status."""

    level: int
    message: str
    values: dict[str, str]


@dataclass
class _Period:
    """Events since the last report."""

    received: int = 0
    published: int = 0
    max_age: float | None = None
    late: float | None = None
    notes: list[str] = field(default_factory=list)


class Monitor:
    """Collect events of the node's threads and report them. Any thread may call any method.

    `identity` are constant values of every report, `more` returns others. `clock` returns seconds.
    """

    def __init__(
        self,
        topic: str,
        camera_timeout: float,
        identity: dict[str, str],
        *,
        more: Callable[[], dict[str, str]] = dict,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._topic, self._timeout, self._identity, self._clock = topic, camera_timeout, identity, clock
        self._more = more
        self._lock = threading.Lock()
        self._period = _Period()
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._size: tuple[int, int] | None = None
        self._encoding = ""
        self._age: float | None = None
        self._inference: float | None = None
        self._last_image = self._last_report = clock()
        self._faults = 0
        self._failure: str | None = None

    def begin(self) -> None:
        """Start again with a new stream, whose counters begin at 0; the totals continue."""
        with self._lock:
            self._last_image = self._last_report = self._clock()
            self._period, self._faults, self._failure = _Period(), 0, None

    def received(self, encoding: str) -> None:
        """Count a received image."""
        with self._lock:
            self._last_image = self._clock()
            self._totals["received"] += 1
            self._period.received += 1
            self._encoding = encoding

    def sized(self, width: int, height: int) -> str | None:
        """Record an image's size; return a note if it differs from the previous one."""
        with self._lock:
            before, self._size = self._size, (width, height)
            if before in (None, self._size):
                return None
            note = f"the camera's resolution changed from {before[0]}x{before[1]} to {width}x{height}"
            self._period.notes.append(note)
            return note

    def count(self, fate: str) -> None:
        """Count an image with one of the fates of `_TOTALS`: `dropped before` is before it reached the stream."""
        with self._lock:
            self._totals[fate] += 1

    def late(self, lag: float) -> None:
        """Record an image that was `lag` seconds old on arrival, more than the warning limit."""
        with self._lock:
            self._period.late = max(lag, self._period.late or 0.0)

    def note(self, words: str) -> None:
        """Add a warning to the next report, once."""
        with self._lock:
            if words not in self._period.notes:
                self._period.notes.append(words)

    def published(self, age: float | None, inference: float) -> None:
        """Record outputs published `age` seconds after the frame's stamp; `inference` is in milliseconds."""
        with self._lock:
            self._totals["published"] += 1
            self._period.published += 1
            self._age, self._inference = age, inference
            if age is not None:
                self._period.max_age = max(age, self._period.max_age or 0.0)

    def failed(self, reason: str) -> None:
        """Record that the stream ended with an error."""
        with self._lock:
            self._failure = reason

    def silent(self) -> float | None:
        """Return the seconds since the last image if they exceed the camera timeout, else None."""
        with self._lock:
            return self._silence(self._clock())

    def _silence(self, now: float) -> float | None:
        waited = now - self._last_image
        return waited if waited > self._timeout else None

    def report(self, health: Health) -> Report:
        """Return the status since the last report; `health` is the stream's."""
        with self._lock:
            now = self._clock()
            period, self._period = self._period, _Period()
            seconds, self._last_report = max(now - self._last_report, 1e-9), now
            faults = sum(getattr(health, name) for name in _FAULTS)
            new_faults, self._faults = faults - self._faults, faults
            level, message = self._verdict(now, period, seconds, new_faults, health)
            return Report(level, message, self._values(now, period, seconds, health))

    def _verdict(self, now: float, period: _Period, seconds: float, new_faults: int, health: Health) -> tuple[int, str]:
        if self._failure is not None:
            return ERROR, self._failure
        silence = self._silence(now)
        if silence is not None:
            return ERROR, f"no image on {self._topic} for {silence:.1f} s"
        if not self._totals["received"]:
            return WARN, f"waiting for the first image on {self._topic}"
        if new_faults:
            problem = health.problems[-1] if health.problems else "frames are lost"
            return (WARN if period.published else ERROR), f"{new_faults} frames lost: {problem}"
        if period.notes:
            return WARN, "; ".join(period.notes)
        if period.late is not None:
            return WARN, f"images are {period.late:.1f} s old when they arrive"
        return OK, f"{period.published / seconds:.1f} frames a second"

    def _values(self, now: float, period: _Period, seconds: float, health: Health) -> dict[str, str]:
        totals = self._totals
        return {
            **self._identity,
            "camera": f"{self._size[0]}x{self._size[1]} {self._encoding}" if self._size else "none",
            "images a second": f"{period.received / seconds:.1f}",
            "frames a second": f"{period.published / seconds:.1f}",
            "seconds since the last image": f"{now - self._last_image:.2f}",
            "frame age (ms)": _milliseconds(self._age),
            "frame age, largest (ms)": _milliseconds(period.max_age),
            "inference (ms)": "none" if self._inference is None else f"{self._inference:.1f}",
            "received": str(totals["received"]),
            "published": str(totals["published"]),
            "skipped": str(totals["skipped"]),
            "stale": str(totals["stale"]),
            "without CameraInfo": str(totals["without CameraInfo"]),
            "dropped for a newer one": str(totals["dropped before"] + health.dropped),
            "unreadable": str(health.corrupt),
            "not finite": str(health.nonfinite),
            "engine errors": str(health.failed),
            "engine stuck": str(health.stuck),
            "engine restarts": str(health.restarts),
            "in work": str(health.in_work),
            **self._more(),
        }


def _milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{1000 * seconds:.1f}"


def identity(manifest: Manifest, self_test: bool, depth_scale: float = 1.0) -> dict[str, str]:
    """Describe the bundle, whether its golden self-test passed or was not run, and what depth is multiplied by.

    A node whose self-test fails does not start.
    """
    calibration, labels = manifest.depth_calibration, manifest.label_map
    passed = "passed" if self_test else "not run (parameter self_test)"
    engine = manifest.engine
    return {
        "model": manifest.model.variant,
        "weights": manifest.model.weights_sha256[:12],
        "engine": f"{engine.kind} {engine.version} {engine.precision}",
        "tasks": ", ".join(manifest.tasks),
        "self-test": passed if manifest.self_test is not None else "the bundle has none",
        "depth calibration": ("none" if calibration is None else calibration.text),
        "depth_scale": f"{depth_scale:g}",
        "labels": "the network's" if labels is None else labels.name,
    }
