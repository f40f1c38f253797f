"""Fixtures for the interpreter that has Triton, and a small bundle served by it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.serving.processes import group_members
from tests.interpreters import interpreter

REPOSITORY = Path(__file__).parents[2]
PEER = Path(__file__).with_name("peer.py")

#: Seconds that the slowest machine may take for one step.
PATIENCE = 300.0

_CHECK = (
    "import onnxruntime, tritonclient.grpc, tritonclient.http\n"
    "from m2h_deploy.serving.environment import check_environment\n"
    "check_environment()"
)


def free_ports(count: int = 3) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Server:
    """A running `m2h-deploy serve`."""

    process: subprocess.Popen[str]
    http: int
    grpc: int
    metrics: int
    temporary: Path
    line: dict[str, Any] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def worker_group(self) -> int:
        """Wait for the process group of the runtime and Triton, and return it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                with suppress(OSError):
                    if "m2h_deploy.serving.worker" in Path(f"/proc/{child}/cmdline").read_text():
                        return int(child)
            time.sleep(0.02)
        raise AssertionError("there is no worker")

    def port(self, protocol: str) -> int:
        return self.http if protocol == "http" else self.grpc


@dataclass(frozen=True)
class Triton:
    """A runner of the command and its peer, with the interpreter that has Triton."""

    python: str
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}

    def start(self, bundle: Path, *words: object, ports: list[int] | None = None) -> Server:
        """Start the command and return before it is ready."""
        http, grpc, metrics = ports or free_ports()
        listen = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--threads", 1, "--json"]
        command = [self.python, "-c", "import cli; cli.main()", "serve", bundle, *listen, *words]
        temporary = Path(tempfile.mkdtemp(dir=self.folder))
        process = subprocess.Popen(
            list(map(str, command)),
            env={**self.environment, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return Server(process, http, grpc, metrics, temporary)

    @contextmanager
    def served(self, bundle: Path, *words: object) -> Iterator[Server]:
        """Run the command until it is ready; at the end, stop it by SIGTERM, or kill it if that fails."""
        server = self.start(bundle, *words)
        try:
            assert server.process.stdout is not None and server.process.stderr is not None
            line = server.process.stdout.readline()
            assert line, server.process.stderr.read()
            server.line = json.loads(line)
            yield server
        finally:
            self.end(server)

    def end(self, server: Server) -> tuple[int, str]:
        """Send SIGTERM; return the exit code and the output."""
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
        return self.wait(server)

    def wait(self, server: Server) -> tuple[int, str]:
        """Wait for the command to end, and kill it if it does not; return the exit code and the output."""
        try:
            _, said = server.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            group = server.worker_group()
            server.process.kill()
            os.killpg(group, signal.SIGKILL)
            raise
        except ValueError:  # read before
            said = ""
        return server.process.returncode, said

    def peer(self, scenario: str, *words: object) -> dict[str, Any]:
        """Run a scenario of `peer.py` and return what it recorded."""
        out = self.folder / f"{scenario}.json"
        command = [self.python, str(PEER), scenario, str(out), *map(str, words)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(out.read_text())

    def left_behind(self, server: Server, group: int | None) -> list[str]:
        """Return what a stopped server left behind: processes, ports, files, shared memory."""
        left = list(group_members(group).values()) if group is not None else []
        for port in (server.http, server.grpc, server.metrics):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    left.append(f"port {port}")
        left += [path.name for path in server.temporary.glob("m2h-serve-*")]
        if group is not None:
            left += [path.name for path in Path("/dev/shm").glob(f"pytrtion{group}-*")]
        return left


@pytest.fixture(scope="session")
def triton(tmp_path_factory) -> Triton:
    return Triton(interpreter("M2H_TRITON_PYTHON", _CHECK), tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def small_onnx(tiny_model, tmp_path_factory) -> Path:
    """Export m2h-tiny with random weights at 56 x 70, with a dynamic batch."""
    from export import export_onnx

    path = tmp_path_factory.mktemp("small") / "small.onnx"
    return export_onnx(tiny_model, path, height=56, width=70, dynamic_batch=True).path


@pytest.fixture(scope="session")
def small_bundle(small_onnx) -> Path:
    from engines import build_bundle

    return build_bundle(small_onnx, small_onnx.with_name("plain")).path


@pytest.fixture(scope="session")
def sensor_bundle(small_onnx) -> Path:
    """Build the same network as a sensor graph for a 64 x 48 camera."""
    import onnx

    from engines import build_bundle
    from export import Sensor, add_sensor

    path = small_onnx.with_name("sensor.onnx")
    onnx.save(add_sensor(onnx.load(small_onnx), Sensor((64, 48))), path)
    return build_bundle(path, small_onnx.with_name("sensor")).path


def calibrated_copy(bundle: Path, out: Path) -> Path:
    """Copy a bundle and give the copy a depth calibration."""
    shutil.copytree(bundle, out)
    calibration = DepthCalibration(scale=1.3, offset=-0.25)
    write_manifest(out, load_bundle(out).manifest.model_copy(update={"depth_calibration": calibration}))
    return out
