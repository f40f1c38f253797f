"""Start Rerun's server and web viewer in a process of their own."""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

from m2h_deploy.errors import M2HError

#: Default port of the page. The data is on the next one, which is the default of Rerun's viewer.
PORT = 9875

#: Data that the server keeps for viewers that connect late or read slowly. Static data is kept in addition. A small
#: limit also limits how far a slow viewer lags behind.
_MEMORY = "32MB"

#: Seconds for starting the server.
_START = 30.0

#: Seconds for ending it after SIGTERM.
_END = 2.0

#: Python that becomes the program in its arguments, which SIGTERM then ends when the thread that started it ends, also
#: where this process is killed. `preexec_fn` is not safe in a process with threads.
_ENDS_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def check_address(host: str, port: int) -> None:
    """Check that the page and the data can be served.

    Args:
        host: IP address to listen on.
        port: port of the page; the data is on the next one.

    Raises:
        M2HError: no IP address, or one that is not of this machine; a port that is impossible or in use.
    """
    _family(host)
    if not 1 <= port <= 65534:
        raise M2HError(f"port {port}: give --view-port a number from 1 to 65534; the data is on the next port")
    for number in (port, port + 1):
        try:
            with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, number))
                probe.listen()
        except OSError as error:
            option = "--view-host" if error.errno == errno.EADDRNOTAVAIL else "--view-port"
            what = error.strerror or str(error)
            raise M2HError(f"cannot serve the view on {_join(host, number)} ({what}): give another {option}") from None


class ViewServer:
    """Rerun's server and web viewer. It ends with `stop`, or when the thread that started it ends."""

    def __init__(self, host: str = "127.0.0.1", port: int = PORT) -> None:
        """Start the server and wait until it listens.

        Args:
            host: IP address to listen on.
            port: port of the page; the data is on the next one.

        Raises:
            M2HError: the address cannot be used (see `check_address`), or the server does not start.
        """
        check_address(host, port)
        self.host, self.port = host, port
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        # In a session of its own, so that Ctrl-C in a terminal reaches this process alone.
        self._process = subprocess.Popen(
            _until_parent_ends([_program(), *self._options()]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            # CI turns Rerun's usage statistics off.
            env=os.environ | {"CI": "1", "RUST_LOG": "error"},
        )
        try:
            self._wait_until_listening()
        except BaseException:
            self.stop()
            raise

    @property
    def page(self) -> str:
        """Address of the page, for a browser."""
        shown = _reachable(self.host)
        data = f"rerun+http://{_join(shown, self.port + 1)}/proxy"
        return f"http://{_join(shown, self.port)}/?url={quote(data, safe='')}"

    @property
    def data(self) -> str:
        """Address of the data on this machine, for `rerun.RecordingStream.connect_grpc`."""
        return f"rerun+http://{_join(_local(self.host), self.port + 1)}/proxy"

    @property
    def running(self) -> bool:
        """Whether the server's process runs."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the server. Its ports are free afterwards. Idempotent."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(_END)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._errors.close()

    def _options(self) -> list[str]:
        options = ["--serve-web", f"--bind={self.host}", f"--web-viewer-port={self.port}", f"--port={self.port + 1}"]
        options += [f"--server-memory-limit={_MEMORY}", "--newest-first"]
        if not ipaddress.ip_address(self.host).is_loopback:
            # By default only pages from this machine may read the data. A device has many names: accept all of them.
            options.append(f"--cors-allow-origin=http://*:{self.port}")
        return options

    def _wait_until_listening(self) -> None:
        end, waiting = monotonic() + _START, [self.port, self.port + 1]
        while waiting:
            if not self.running or monotonic() > end:
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").strip().splitlines()
                raise M2HError(f"Rerun's server did not start: {lines[-1] if lines else 'it gave no reason'}")
            try:
                socket.create_connection((_local(self.host), waiting[0]), 1).close()
            except OSError:
                sleep(0.02)
            else:
                waiting.pop(0)


def _program() -> str:
    """Return the path of Rerun's program. Starting it through `python -m rerun_cli` would add a process."""
    spec = importlib.util.find_spec("rerun_cli")
    name = "rerun.exe" if sys.platform == "win32" else "rerun"
    places = [Path(folder) / name for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    found = next((str(place) for place in places if place.is_file()), None) or shutil.which("rerun")
    if found is None:
        raise M2HError("this rerun-sdk has no program `rerun`: install rerun-sdk from PyPI")
    return found


def _until_parent_ends(command: list[str]) -> list[str]:
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _ENDS_WITH_PARENT, str(os.getpid()), *command]


def _family(host: str) -> socket.AddressFamily:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise M2HError(
            f"--view-host {host}: give an IP address of this machine, 127.0.0.1, or 0.0.0.0 for every network"
        ) from None
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _local(host: str) -> str:
    """Return the address at which this machine reaches a server that listens on `host`."""
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    return "::1" if ":" in host else "127.0.0.1"


def _reachable(host: str) -> str:
    """Return the address at which other machines reach a server that listens on `host`."""
    if not ipaddress.ip_address(host).is_unspecified:
        return host
    try:
        # Connecting a UDP socket chooses the outgoing address and sends nothing. The target is reserved for examples.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
