"""Memory of this process, as Linux counts it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc/self")


@dataclass(frozen=True)
class Memory:
    """Megabytes (10^6) of resident memory; None where the machine does not tell."""

    before: float | None
    """With the frames in memory, before any engine was loaded."""
    loaded: float | None
    """With every engine loaded."""
    peak: float | None
    """The most since before the engines were loaded, loading and warm-up included."""


def reset_peak() -> None:
    """Let the kernel count the peak from now on. Where it does not, the peak is that of the whole process."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return


def resident_mb() -> float | None:
    """Resident memory now."""
    return _status("VmRSS")


def peak_mb() -> float | None:
    """Most resident memory since `reset_peak`."""
    return _status("VmHWM")


def _status(key: str) -> float | None:
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith(f"{key}:")), None)
    return None if found is None else int(found) * 1024 / 1e6
