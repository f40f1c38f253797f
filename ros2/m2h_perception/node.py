"""The node: images in, depth, labels and points out, each with the header of its input image."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import rclpy
from rclpy.exceptions import NameValidationException, ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from m2h_deploy import M2HError
from m2h_perception.parameters import read_settings
from m2h_perception.perception import Perception, shut_down

#: The node's name, unless a launch file gives another.
NAME = "m2h_perception"


class Runnable(Protocol):
    """A node that `run` can run."""

    perception: Perception

    def start(self) -> None:
        """Begin; raises M2HError."""

    def destroy_node(self) -> None:
        """Remove the node from ROS."""


class PerceptionNode(Node):
    """Run a bundle on a camera's topic, from the start of the process to its end.

    The constructor only reads the parameters. Invalid ones raise M2HError or one of rclpy's exceptions, which `run`
    reports.
    """

    def __init__(self) -> None:
        super().__init__(NAME)
        self.perception = Perception(self, read_settings(self), fail=lambda: shut_down(self))

    def start(self) -> None:
        """Open the bundle and the topics, and take images. Raises as `Perception.open`."""
        self.perception.open()
        self.perception.start()


def main(args: Sequence[str] | None = None) -> int:
    """Run the node; return 0 after Ctrl-C or SIGTERM, 1 if self-test or stream failed, 2 on invalid parameters."""
    return run(PerceptionNode, args)


def run(make_node: Callable[[], Runnable], args: Sequence[str] | None = None) -> int:
    """Run a node until ROS is shut down, and return the exit code, as `main`."""
    node: Runnable | None = None
    failure: M2HError | None = None
    try:
        _init(args)
        node = make_node()
        node.start()
        _spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except M2HError as error:
        failure = error
    except (NameValidationException, ParameterException) as error:
        failure = M2HError(one_line(error))
    except Exception:
        if rclpy.ok():
            raise
        # SIGTERM removes the topics while they are in use
    finally:
        _ignore_interrupts()
        if node is not None:
            node.perception.close()
            node.destroy_node()
        rclpy.try_shutdown()
    code = 0 if failure is None else failure.exit_code
    if failure is None and node is not None and node.perception.failure is not None:
        failure, code = node.perception.failure, 1
    if failure is not None:
        print(f"error: {failure}", file=sys.stderr)
    _leave_stuck_engines(code)
    return code


def _init(args: Sequence[str] | None) -> None:
    """Initialize rclpy. Raises M2HError if ROS rejects the command line."""
    try:
        rclpy.init(args=None if args is None else list(args))
    except (RuntimeError, ValueError) as error:
        raise M2HError(one_line(error)) from None


class _Executor(SingleThreadedExecutor):
    """An executor that SIGTERM may interrupt during construction.

    rclpy's constructor fails if ROS was shut down just before, and its destructor then reads an attribute that the
    constructor did not set, and prints a traceback.
    """

    _sigint_gc = None


def _spin(node: Runnable) -> None:
    """Run the node until ROS is shut down."""
    executor = _Executor()
    try:
        rclpy.spin(node, executor)
    finally:
        executor.shutdown()


def one_line(error: Exception) -> str:
    """Return rclpy's message without the line that marks a character and without locations in its sources."""
    lines = [line.strip() for line in re.sub(r", at \S+:\d+", "", str(error)).splitlines()]
    return " ".join(line for line in lines if line.strip("^"))


def _ignore_interrupts() -> None:
    """Ignore further signals: under ros2 launch Ctrl-C arrives twice, from the terminal and from launch."""
    for _ in range(3):
        with contextlib.suppress(KeyboardInterrupt):  # a pending one
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
            return


def _leave_stuck_engines(code: int) -> None:
    """Exit immediately if an engine is stuck: a normal interpreter shutdown would abort the process."""
    if any(thread.daemon and thread.name.startswith("m2h-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
