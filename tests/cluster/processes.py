"""Find and kill the processes of a job on Ray, and add pictures to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2

from m2h_deploy.data.rooms.render import render_room


def add_picture(folder: Path, index: int) -> None:
    cv2.imwrite(str(folder / f"room{index:02d}.png"), render_room(1, index, height=48, width=64).image)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def workers_of(pid: int) -> list[int]:
    """Return the process ids of the workers that process frames in a process's Ray."""
    return [child for child in descendants(pid) if _title(child).startswith("ray::MapWorker")]


def descendants(pid: int) -> list[int]:
    """Return all living descendants of `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    level = [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
