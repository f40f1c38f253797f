"""Connect to Ray for a job: a local cluster that is removed afterwards, or an existing one."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from m2h_deploy.errors import M2HError, first_line, missing_extra
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.stdio import error_stream

#: Address of a cluster on this machine, started for one job.
LOCAL = "local"

#: Timeout in seconds for connecting to a cluster's head.
_PATIENCE = 10

#: Size of Ray's object store, which holds only names of frames here; its default is a third of the memory.
_STORE_BYTES = 512 << 20


@dataclass(frozen=True)
class Cluster:
    """Where a job runs, and with how many resources."""

    address: str = LOCAL
    """`local`, `auto`, HOST:PORT of a cluster's head, or ray://HOST:PORT."""
    workers: int | None = None
    """Number of processes with an engine each; by default as many as fit, with one CPU reserved for Ray."""
    threads: int = 1
    """CPU threads of each worker."""
    gpus: float = 0.0
    """GPUs of each worker; with a share such as 0.5, two workers use one GPU."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise M2HError(f"{self.workers} workers: must be at least 1")
        if self.threads < 1 or self.gpus < 0:
            raise M2HError(f"{self.threads} threads and {self.gpus:g} GPUs a worker: at least 1 thread and 0 GPUs")


@dataclass(frozen=True)
class Session:
    """A running Ray, and the job's resources."""

    ray: Any
    workers: int
    threads: int
    gpus: float


def import_ray() -> Any:
    """Import Ray with Ray Data. Raises M2HError, naming the extra, if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    try:
        import_module("ray.data")
        import_module("pyarrow.parquet")
    except ImportError as error:
        missing = (error.name or "ray").split(".")[0]
        raise missing_extra(missing, "ray", "a job on Ray", error=error) from None
    return import_module("ray")


@contextmanager
def connected(cluster: Cluster) -> Iterator[Session]:
    """Connect to Ray without dashboard, usage statistics or log output.

    An existing connection of this process is reused.

    Raises:
        M2HError: Ray is not installed, the address is unreachable, or the cluster is too small.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield _session(ray, cluster)
        return
    with contextlib.ExitStack() as stack:
        # It contains Unix sockets, whose paths have a length limit: not the user's TMPDIR.
        logs = stack.enter_context(scratch_folder("m2h-ray-", "/tmp"))
        stack.enter_context(_quiet(logs))
        stack.callback(ray.shutdown)
        _start(ray, cluster, logs)
        yield _session(ray, cluster)


@contextmanager
def on_demand(cluster: Cluster) -> Iterator[Callable[[], Session]]:
    """Yield a function that connects on its first call, until the block ends: a job without work never starts Ray."""
    with contextlib.ExitStack() as stack:
        sessions: list[Session] = []

        def session() -> Session:
            if not sessions:
                sessions.append(stack.enter_context(connected(cluster)))
            return sessions[0]

        yield session


def _start(ray: Any, cluster: Cluster, logs: Path) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address == LOCAL:
        # A logical count for Ray's scheduler: without one more CPU than the workers use, its reader would starve.
        places = max(_processors(), (cluster.workers or 1) * cluster.threads + 1)
        options |= {
            "num_cpus": places,
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_temp_dir": str(logs),
        }
    else:
        _check_reachable(cluster.address)
    handlers = _handlers()
    try:
        ray.init(address=cluster.address, **options)
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        raise M2HError(f"no Ray at '{cluster.address}': {first_line(error)[:300]}") from None
    finally:
        for number, handler in handlers.items():  # Ray's handlers would end the command without its final message
            signal.signal(number, handler)


def _check_reachable(address: str) -> None:
    """Raise M2HError if HOST:PORT is unreachable: Ray itself retries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # 'auto', or a name that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise M2HError(f"no Ray at '{address}': {error}; start one there with: ray start --head") from None


def _handlers() -> dict[signal.Signals, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}


def _session(ray: Any, cluster: Cluster) -> Session:
    there = ray.cluster_resources()
    processors, gpus = int(there.get("CPU", 0)), float(there.get("GPU", 0))
    workers = cluster.workers or max(1, (processors - 1) // cluster.threads)
    needed = workers * cluster.threads + 1
    if needed > processors:
        raise M2HError(
            f"{workers} workers of {cluster.threads} threads need {needed} CPUs, one of them for Ray's own work, and "
            f"the cluster has {processors}: give fewer workers (--ray-workers)"
        )
    if workers * cluster.gpus > gpus:
        raise M2HError(
            f"{workers} workers of {cluster.gpus:g} GPUs: the cluster has {gpus:g}: give fewer workers (--ray-workers)"
        )
    return Session(ray, workers, cluster.threads, cluster.gpus)


def _processors() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _quiet(logs: Path) -> Iterator[None]:
    """Discard what Ray prints from Python and redirect its native output to a file; the caller's output is kept."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_native_stderr_to(logs / "native.log"))
        plain: Any = _WithoutRay(sys.stdout)
        stack.enter_context(contextlib.redirect_stdout(plain))
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


class _WithoutRay:
    """stdout without Ray's threads, which report a dead worker there, in the middle of a command's JSON."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _native_stderr_to(file: Path) -> Iterator[None]:
    """Redirect file descriptor 2 to `file`, and `sys.stderr` to the original target."""
    try:
        plain = sys.stderr.fileno() == 2
    except (OSError, ValueError, AttributeError):
        plain = False
    if not plain:  # stderr is redirected already, and native output does not reach a terminal
        yield
        return
    sys.stderr.flush()
    saved, kept = os.dup(2), sys.stderr
    with file.open("wb") as sink:
        os.dup2(sink.fileno(), 2)
        sys.stderr = error_stream(saved)
        try:
            yield
        finally:
            sys.stderr = kept
            os.dup2(saved, 2)
            os.close(saved)
