"""Start the serving process in its own process group, and terminate the whole group in every case.

Triton is a tree of processes, and a leftover process keeps its port occupied. So the tree is a process group that never
outlives the call: not after a failed start, SIGTERM, Ctrl-C, or an exception.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.causes import MachineError, reason
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.files.provenance import LOG_MARK
from m2h_deploy.serving.environment import check_environment
from m2h_deploy.serving.options import ServeOptions
from m2h_deploy.serving.processes import group_members
from m2h_deploy.stdio import wanted_signals

#: Seconds for the engine's self-test and Triton's start.
START = 120.0

#: Seconds from SIGTERM to SIGKILL: Triton's own limit for requests in flight, and a margin.
PATIENCE = 60.0

#: Patterns of lines in Triton's log that give the cause of its end, the most reliable first.
_TELLING = (r"^error:", r"(?i)\berror\b", r"^E\d{4} ", "")


def serve(options: ServeOptions, *, ready: Callable[[], None], log: Path | None = None) -> None:
    """Serve a bundle over HTTP and gRPC until SIGTERM or SIGINT; accepted requests are completed before it returns.

    `ready` is called once the server responds. Triton's output goes to `log`. A second signal stops the server
    immediately. Call it from the main thread, because it handles signals.

    Raises:
        M2HError: The environment, the bundle or a port is unusable, the server does not start, or it ends by itself.
        CheckFailed: The engine computes wrong results.
    """
    with _stop_signals() as stops:
        check_environment()
        load_bundle(options.bundle)
        check_ports(options)
        # A short name: it contains sockets, whose paths have a length limit.
        with scratch_folder("m2h-serve-") as folder, _log_file(log or folder / "log") as stream:
            _serve(_Worker(options, folder / "triton", stream), stops, ready)


def _serve(worker: _Worker, stops: _Stops, ready: Callable[[], None]) -> None:
    try:
        if worker.wait_until_ready(stops):
            ready()
            worker.wait(stops)
            worker.stop(stops)
    finally:
        worker.kill()


def check_ports(options: ServeOptions) -> None:
    """Raise M2HError if a port is in use.

    Triton would report it late, and another server on the port would respond in its place.
    """
    for use, port in options.ports.items():
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((options.host, port))
        except OSError as error:
            option = f"--{use.lower()}-port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            reason = error.strerror or str(error)
            raise M2HError(
                f"cannot listen on {options.host}:{port} for {use} ({reason}): give another {option}"
            ) from None


@contextmanager
def _stop_signals() -> Iterator[_Stops]:
    """Count SIGTERM, SIGINT and SIGHUP instead of ending the process while the block runs."""
    stops = _Stops()
    numbers = wanted_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    before = {number: signal.signal(number, stops.count) for number in numbers}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stops:
    """Number of stop signals. Signals within a second of each other count as one."""

    def __init__(self) -> None:
        self.number = 0
        self._last = -math.inf
        self._told = threading.Event()

    def count(self, *_: object) -> None:
        # A terminal and a program that forwards signals send two at once.
        now = time.monotonic()
        if now - self._last > 1:
            self.number += 1
            self._last = now
        self._told.set()

    def wait(self, seconds: float) -> None:
        """Sleep until the first signal; after it only briefly."""
        if self._told.wait(seconds) and self.number > 0:
            time.sleep(0.02)


@contextmanager
def _log_file(path: Path) -> Iterator[IO[str]]:
    try:
        stream = path.open("w+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise MachineError(f"cannot write {path}: {reason(error)}") from None
    with stream:
        print(LOG_MARK, file=stream, flush=True)
        yield stream


class _Worker:
    """The serving process and its group."""

    def __init__(self, options: ServeOptions, folder: Path, log: IO[str]) -> None:
        self._log = Path(log.name)
        values = json.dumps({**asdict(options), "bundle": str(options.bundle.resolve())})
        self._report, reported = os.pipe()
        os.set_blocking(self._report, False)
        command = [sys.executable, "-m", "m2h_deploy.serving.worker", values, str(folder), str(reported)]
        try:
            # A terminal's Ctrl-C then reaches only this process, which ends the others in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(reported,),
                start_new_session=True,
            )
        finally:
            os.close(reported)
        self.group = self._process.pid

    def wait_until_ready(self, stops: _Stops) -> bool:
        """Return True when the server responds, False if a stop signal arrives first."""
        deadline = time.monotonic() + START
        while not stops.number:
            line = self._reported()
            if line == "ready":
                return True
            if line or self._process.poll() is not None or time.monotonic() > deadline:
                raise self._failure(line or self._reported(), "Triton did not start")
            stops.wait(0.05)
        return False

    def wait(self, stops: _Stops) -> None:
        """Wait for a stop signal. Raises M2HError if the server ends first."""
        while not stops.number:
            line = self._reported()
            if line or self._process.poll() is not None:
                raise self._failure(line or self._reported(), "Triton ended on its own")
            stops.wait(0.2)

    def stop(self, stops: _Stops) -> None:
        """Send SIGTERM and wait until accepted requests are completed; a second signal cuts that short.

        Raises:
            M2HError: It was cut short, or the server did not end cleanly.
        """
        deadline = time.monotonic() + PATIENCE
        self._process.terminate()
        while self._process.poll() is None:
            if stops.number > 1 or time.monotonic() > deadline:
                raise M2HError("Triton was stopped early: requests in flight were dropped")
            time.sleep(0.02)
        if self._process.returncode:
            raise self._failure(self._reported(), "Triton did not stop cleanly")

    def kill(self) -> None:
        """Kill the remaining processes of the group, and remove its shared memory."""
        deadline = time.monotonic() + 5
        with suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self._process.wait()
        while group_members(self.group) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.close(self._report)
        for left in Path("/dev/shm").glob(f"pytrtion{self.group}-*"):  # the wheel's own spelling
            with suppress(OSError):
                left.unlink()

    def _reported(self) -> str:
        with suppress(BlockingIOError):
            return os.read(self._report, 65536).decode(errors="replace").strip()
        return ""

    def _failure(self, reported: str, otherwise: str) -> M2HError:
        match = re.search(r"^failed (\d) (.*)$", reported, re.MULTILINE)
        if match is None:
            return M2HError(f"{otherwise}: {_last_words(self._log)}")
        return (CheckFailed if match[1] == "1" else M2HError)(match[2])


def _last_words(log: Path) -> str:
    """Return the line of Triton's log that most likely gives the cause of its end."""
    text = log.read_text(encoding="utf-8", errors="replace").removeprefix(LOG_MARK)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    by_weight = ([line for line in lines if re.search(pattern, line)] for pattern in _TELLING)
    telling = next(filter(None, by_weight), ["it wrote nothing"])
    return " ".join(telling[-1].split())[:300]
