"""The folder that a job's workers share: finished frames, attempts, and a token that identifies the job."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from m2h_deploy.causes import failure
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import is_temporary, make_folder, write_text

#: A frame during which this many workers died is not tried again, because it would kill every worker.
MOST_TRIES = 3


@dataclass(frozen=True)
class State:
    """A folder that the command and all workers can access."""

    folder: Path
    token: str

    @classmethod
    def begin(cls, folder: Path) -> State:
        """Begin a new job in `folder`, an absolute path; earlier results are kept.

        Raises:
            M2HError: The folder cannot be written.
        """
        _check_own(folder)
        make_folder(folder)
        shutil.rmtree(folder / "tries", ignore_errors=True)
        make_folder(folder / "tries")
        state = cls(folder, secrets.token_hex(8))
        write_text(state._sign, json.dumps({"token": state.token}))
        return state

    @property
    def _sign(self) -> Path:
        return self.folder / _SIGN

    def check(self) -> None:
        """Raise M2HError if this process cannot read the job's folder, or another job has begun in it."""
        try:
            token = json.loads(self._sign.read_text(encoding="utf-8"))["token"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise M2HError(
                f"the worker on {socket.gethostname()} does not see {self.folder}: bundle, frames and results must lie "
                "on storage that every node mounts at the same path"
            ) from None
        if token != self.token:
            raise M2HError(f"{self.folder}: another job uses this folder: give each job its own --output or --ray-work")

    @contextmanager
    def attempt(self, key: str) -> Iterator[None]:
        """Record an attempt at one frame while the block runs; the record remains if the process dies.

        Raises:
            M2HError: `MOST_TRIES` workers have died on this frame.
        """
        mark = self.folder / "tries" / key
        tries = mark.stat().st_size if mark.exists() else 0
        if tries >= MOST_TRIES:
            raise M2HError(f"{tries} workers died on it; not tried again in this job")
        with mark.open("ab") as file:
            file.write(b".")
        try:
            yield
        except Exception:  # an error is a result; only a dead process leaves the mark
            mark.unlink(missing_ok=True)
            raise
        mark.unlink(missing_ok=True)


def _check_own(folder: Path) -> None:
    """Raise M2HError if `folder` contains anything other than a job's state."""
    other = f"{folder} is not the folder of a job"
    try:
        names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        others = sorted(name for name in names - _KEPT if not is_temporary(name, _SIGN))
        if others:
            raise M2HError(f"{other} (it holds {others[0]}): give another one")
        if names and "token" not in json.loads((folder / _SIGN).read_bytes()):
            raise M2HError(f"{other}: give another one")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise failure(error, f"cannot read {folder}", f"{other}: give another one") from None


#: Names of a job's files and subfolders.
_SIGN = "job.json"
_KEPT = {_SIGN, "tries", "done", "frames"}
