"""Fixtures for the ROS package and the interpreter that has ROS 2."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interpreters import interpreter

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "ros2"
sys.path.insert(0, str(PACKAGE))

#: Seconds that the slowest machine may take to start or end the node.
PATIENCE = 300.0

_MODULES = (
    "rclpy, sensor_msgs.msg, nav_msgs.msg, lifecycle_msgs.srv, diagnostic_msgs.msg, "
    "rosgraph_msgs.msg, cv2, pydantic, yaml, onnxruntime, "
    "mcap_ros2"
)


@dataclass(frozen=True)
class Ros:
    """A runner of the node and its peer on a separate domain, on loopback."""

    python: str
    folder: Path
    environment: dict[str, str]

    @contextmanager
    def node(
        self, bundle: Path, *, ready: bool | str = True, module: str = "m2h_perception.node", **parameters: object
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a module's node, by default until it is ready; kill it at the end if it still runs.

        `ready` may be a word of the log by which the node is ready.
        """
        values = {"bundle": bundle, "threads": 1, "engine_timeout_s": 120.0, **parameters}
        words = [word for name, value in values.items() for word in ("-p", f"{name}:={_yaml(value)}")]
        log = self.folder / "node.log"
        with log.open("w") as stream:
            command = [self.python, "-m", module, "--ros-args", *words]
            process = subprocess.Popen(command, env=self.environment, stdout=stream, stderr=stream, text=True)
        try:
            deadline = time.monotonic() + PATIENCE
            word = ready if isinstance(ready, str) else "self-test"
            while ready and word not in log.read_text() and process.poll() is None:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        return (self.folder / "node.log").read_text()

    def wait_for_handler(self, process: subprocess.Popen[str]) -> None:
        """Wait until a process has a handler for SIGTERM."""
        status = Path(f"/proc/{process.pid}/status")
        deadline = time.monotonic() + PATIENCE
        while not int(re.findall(r"SigCgt:\s*(\w+)", status.read_text())[0], 16) >> (signal.SIGTERM - 1) & 1:
            assert process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.005)

    def interrupt(self, process: subprocess.Popen[str]) -> int:
        """Send SIGINT twice, as a terminal and ros2 launch do, and return the exit code."""
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        return self.wait(process)

    def wait(self, process: subprocess.Popen[str]) -> int:
        """Wait until a node ends, and return its exit code."""
        return process.wait(PATIENCE)

    def peer(self, scenario: str, *words: object) -> dict[str, Any]:
        """Run a scenario of `peer.py` and return what it recorded."""
        command = self._peer_command(scenario, words)
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:] + self.log()[-3000:]
        return json.loads((self.folder / f"{scenario}.json").read_text())

    @contextmanager
    def peer_in_background(self, scenario: str, *words: object) -> Iterator[Callable[[str], None]]:
        """Run `peer.py` during the block; the yielded function waits until it has printed a line."""
        command = self._peer_command(scenario, words)
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

        def said(line: str) -> None:
            assert process.stdout is not None
            assert any(heard.strip() == line for heard in process.stdout), self.log()[-3000:]

        try:
            yield said
        finally:
            process.kill()
            process.communicate()

    def _peer_command(self, scenario: str, words: tuple[object, ...]) -> list[str]:
        peer = str(Path(__file__).with_name("peer.py"))
        return [self.python, peer, scenario, str(self.folder / f"{scenario}.json"), *map(str, words)]


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


@pytest.fixture(scope="module")
def ros(tmp_path_factory) -> Ros:
    python = interpreter("M2H_ROS_PYTHON", f"import {_MODULES}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(PACKAGE))),
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "OMP_NUM_THREADS": "1",
    }
    return Ros(python, tmp_path_factory.mktemp("ros2"), environment)
