"""Memory of this process, as Linux counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6) of resident memory; None if unknown."""

    before: float | None
    """With the frames in memory, before any engine is loaded."""
    loaded: float | None
    """With every engine loaded."""
    peak: float | None
    """Peak since before the engines were loaded, including loading and warm-up."""


def reset_peak() -> None:
    """Reset the kernel's peak counter. If that is not possible, the peak is that of the whole process."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return


def resident_mb() -> float | None:
    """Return the resident memory in megabytes (10^6), or None."""
    return _status("VmRSS")


def peak_mb() -> float | None:
    """Return the peak resident memory since `reset_peak` in megabytes (10^6), or None."""
    return _status("VmHWM")


def _status(key: str) -> float | None:
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found) * 1024 / 1e6
