"""The folder that a job's workers share: what is done, what was tried, and a sign that it is the same folder."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2h_deploy.errors import M2HError
from m2h_deploy.files import make_folder, write_text

#: A frame during which this many workers died is not tried again: it would take down every worker there is.
MOST_TRIES = 3


@dataclass(frozen=True)
class State:
    """A folder that the command and all workers see."""

    folder: Path
    token: str

    @classmethod
    def begin(cls, folder: Path) -> State:
        """A new job in `folder`, absolute; results of earlier ones stay. Raises M2HError when it cannot be written."""
        make_folder(folder)
        shutil.rmtree(folder / "tries", ignore_errors=True)
        make_folder(folder / "tries")
        state = cls(folder, secrets.token_hex(8))
        write_text(state._sign, json.dumps({"token": state.token}))
        return state

    @property
    def _sign(self) -> Path:
        return self.folder / "job.json"

    def check(self) -> None:
        """Raises M2HError where this process does not see the job's folder, or another job has begun in it."""
        try:
            token = json.loads(self._sign.read_text())["token"]
        except (OSError, ValueError, KeyError, TypeError):
            raise M2HError(
                f"the worker on {socket.gethostname()} does not see {self.folder}: bundle, frames and results must lie "
                "on storage that every node mounts at the same path"
            ) from None
        if token != self.token:
            raise M2HError(f"{self.folder}: another job has begun in this folder: give each its own")

    @contextmanager
    def attempt(self, key: str) -> Iterator[None]:
        """Around the work on one frame: a process that dies in it leaves a mark.

        Raises M2HError when the frame has left `MOST_TRIES` of them.
        """
        mark = self.folder / "tries" / key
        tries = mark.stat().st_size if mark.exists() else 0
        if tries >= MOST_TRIES:
            raise M2HError(f"{tries} workers died on it; not tried again in this job")
        with mark.open("ab") as file:
            file.write(b".")
        try:
            yield
        except Exception:  # a reason is an answer; what leaves the mark is a process that is no more
            mark.unlink(missing_ok=True)
            raise
        mark.unlink(missing_ok=True)
