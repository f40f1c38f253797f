"""Remember passed self-tests in the user's cache folder, so that a restarted program need not repeat them.

A record is named by everything that the results of the test depend on and holds the same text. If anything changes, or
the record is missing, damaged or unreadable, the self-test runs again: the cache can only save time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from m2h_deploy.backends import Backend, BackendOptions
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.files.cache import read_checked, user_cache_folder, write_checked
from m2h_deploy.version import __version__

#: Beginnings of the names of environment variables that change how an engine computes.
_VARIABLES = ("DNNL_", "GOMP_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OPENVINO_", "ORT_", "OV_", "TBB_")

#: Fields of /proc/cpuinfo that change while a machine runs.
_VARYING = ("cpu MHz", "bogomips", "BogoMIPS")


class PassedTest:
    """The record of one bundle's self-test, with one engine on one machine."""

    def __init__(self, bundle: Bundle, backend: Backend, options: BackendOptions, cpuinfo: Path | None = None) -> None:
        """Describe the test; `cpuinfo` stands in for /proc/cpuinfo."""
        facts = _facts(bundle, backend, options, cpuinfo or Path("/proc/cpuinfo"))
        self._body = b"" if facts is None else json.dumps(facts, sort_keys=True, indent=1).encode()

    def known(self) -> bool:
        """Return whether the same test has passed before."""
        file = self._file()
        return file is not None and read_checked(file) == self._body

    def remember(self) -> None:
        """Record that the test has passed; does nothing if the cache folder cannot be written."""
        file = self._file()
        if file is not None:
            write_checked(file, self._body)

    def forget(self) -> None:
        """Remove the record of a test that has failed now, so that the next load runs it again."""
        file = self._file()
        if file is not None:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _file(self) -> Path | None:
        folder = user_cache_folder("self-tests") if self._body else None
        return None if folder is None else folder / f"{hashlib.sha256(self._body).hexdigest()}.passed"


def _facts(bundle: Bundle, backend: Backend, options: BackendOptions, cpuinfo: Path) -> dict[str, Any] | None:
    """Return what the test's result depends on; None if the engine does not say all of it.

    The manifest holds the sha256 of every file, which was verified when the bundle was loaded. The number of threads
    changes how the engine divides its work, and so its roundings.
    """
    processor = _processor(cpuinfo)
    if backend.library is None or processor is None:
        return None
    try:
        library, sources = backend.library.stat(), _sources()
    except OSError:
        return None
    manifest = bundle.manifest.model_dump_json().encode()
    return {
        "m2h_deploy": [__version__, sources],
        "manifest": hashlib.sha256(manifest).hexdigest(),
        "engine": backend.description,
        "library": [os.fspath(backend.library), library.st_size, library.st_mtime_ns],
        "processor": processor,
        "threads": [options.threads, len(os.sched_getaffinity(0))],
        "device": options.device,
        "extra": {name: str(value) for name, value in options.extra.items()},
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _sources() -> str:
    """Return a digest of the sizes and times of the source files that compute the result.

    The code of an editable installation changes without the version.
    """
    package = Path(__file__).parents[1]
    files = [*sorted((package / "backends").glob("*.py")), package / "bundle" / "self_test.py"]
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _processor(cpuinfo: Path) -> list[str] | None:
    """Return the description of the first core, with its microcode and features; None if it cannot be read."""
    lines = [platform.machine()]
    try:
        with cpuinfo.open(encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if not line.strip():
                    break
                if not line.startswith(_VARYING):
                    lines.append(" ".join(line.split()))
    except OSError:
        return None
    return lines if len(lines) > 1 else None
