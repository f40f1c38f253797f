"""List the processes of a process group from /proc."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_STAT = re.compile(r"(\d+) \((.*)\) (\S) \d+ (\d+) ", re.DOTALL)


def group_members(group: int) -> dict[int, str]:
    """Return the living processes of a process group with their names (at most 15 characters)."""
    members: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = _STAT.match(stat.read_text(encoding="utf-8", errors="replace"))
            if fields is not None and int(fields[4]) == group and fields[3] not in "ZX":
                members[int(fields[1])] = fields[2]
    return members
