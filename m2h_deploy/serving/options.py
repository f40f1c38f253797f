"""Options of a server, and the names and limits of its model."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import M2HError
from m2h_deploy.tasks import TABLE

#: Largest number of frames of one call, and of one client's request.
MAX_BATCH = 1024

#: The name of the input: raw pixels.
IMAGE = "image"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,49}")


@dataclass(frozen=True)
class ServeOptions:
    """A bundle, the model name, the server's addresses and its batching."""

    bundle: Path
    name: str = "m2h"
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    max_batch: int = 8
    """Largest batch, also of a single request."""
    delay_ms: float = 2.0
    """Milliseconds that a frame waits for others; 0: only until the current batch is done."""
    threads: int | None = None
    """CPU threads of the engine."""
    device: str | None = None
    """Device of the engine; None: its own choice."""
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries of TensorRT that may be loaded."""
    allow_engine_code: bool = False
    """Allow the code in a version-compatible plan of TensorRT to be executed."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_batching(self.max_batch, self.delay_ms)
        if ":" in self.host:
            raise M2HError(f"host {self.host}: nvidia-pytriton takes IPv4 addresses and names")
        ports = self.ports
        for use, port in ports.items():
            if not 1 <= port <= 65535:
                raise M2HError(f"{use} port {port}: must be between 1 and 65535")
        if len(set(ports.values())) < len(ports):
            raise M2HError(f"ports {', '.join(map(str, ports.values()))}: HTTP, gRPC and metrics need one each")

    @property
    def ports(self) -> dict[str, int]:
        """The ports by their use."""
        return {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port}


def check_name(name: str) -> None:
    """Raise M2HError if the model name is not a plain folder name: Triton uses it in paths and addresses."""
    if not _NAME.fullmatch(name):
        raise M2HError(f"model name '{name}': use letters, digits, '.', '_' and '-', at most 50, not '.' or '-' first")


def check_batching(max_batch: int, delay_ms: float) -> None:
    """Raise M2HError if the dynamic batcher does not support these values."""
    if not 1 <= max_batch <= MAX_BATCH:
        raise M2HError(f"largest batch {max_batch}: must be between 1 and {MAX_BATCH}")
    if not 0 <= delay_ms <= 60_000:
        raise M2HError(f"delay {delay_ms:g} ms: must be between 0 and 60000")


def output_names(manifest: Manifest) -> dict[str, str]:
    """Return the server's name of each task's output: the task's own, and `labels` for semantics."""
    return {task: TABLE[task].result.name for task in manifest.tasks}


def client_parameters(manifest: Manifest) -> dict[str, str]:
    """Return what clients may want to know of the model, as parameters of Triton's model configuration: JSON by key.

    `class_names`: a name for each value of `labels`. `class_colors`: [red, green, blue] of each. `label_map`: the label
    space of these classes and the network's classes in each, if it is not the network's own. `depth_calibration`: scale
    and offset (meters) that `depth` contains already.
    """
    parameters: dict[str, Any] = {}
    if "semantics" in manifest.tasks:
        parameters |= {"class_names": manifest.classes.names, "class_colors": manifest.classes.palette}
        if manifest.label_map is not None:
            parameters["label_map"] = manifest.label_map.model_dump(mode="json")
    if "depth" in manifest.tasks and manifest.depth_calibration is not None:
        parameters["depth_calibration"] = manifest.depth_calibration.model_dump(
            mode="json", include={"scale", "offset"}
        )
    return {key: json.dumps(value) for key, value in parameters.items()}


def engine_batch(manifest: Manifest) -> int | None:
    """Return the largest batch of the engine; None if it is unlimited."""
    if manifest.input.batch is not None:
        return manifest.input.batch
    largest = manifest.engine.options.get("max_batch")
    return largest if isinstance(largest, int) and largest > 0 else None
