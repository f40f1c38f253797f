"""Compare the files of an sdist with those that git tracks: sdist_files.py FILE.tar.gz. Exit code 1: they differ."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def difference(sdist: str) -> list[str]:
    """Return a line for every file that only one of both has; the sdist also has its own metadata, PKG-INFO."""
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(filter(None, listed.stdout.split("\0")))
    lines = [f"not tracked by git, and in the sdist: {name}" for name in sorted(packed - tracked)]
    return lines + [f"tracked by git, and not in the sdist: {name}" for name in sorted(tracked - packed)]


if __name__ == "__main__":
    found = difference(sys.argv[1])
    print("\n".join(found[:20]) or f"{sys.argv[1]} has the files that git tracks")
    sys.exit(bool(found))
