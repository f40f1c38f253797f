"""The common interface of all engines on a device, and the options to open them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from m2h_deploy.errors import M2HError

#: A larger number of threads is an input error, and starting them could exhaust the machine.
MAX_THREADS = 1024


@dataclass(frozen=True)
class BackendOptions:
    """How to run a bundle on this machine; None leaves a choice to the manifest or the engine."""

    threads: int | None = None
    device: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries that the caller allows to be loaded; a bundle only names the ones it needs."""
    allow_engine_code: bool = False
    """Allow code inside the engine file to be executed: version-compatible plans of TensorRT contain some."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise M2HError(f"threads {self.threads}: must be between 1 and {MAX_THREADS}")


class Pending(Protocol):
    """A frame that an engine was given; see `Backend.begin`. As little thread-safe as its engine."""

    def wait_computed(self) -> None:
        """Wait until the network has run; its outputs may still be on their way to the host."""
        ...

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """Wait for the frame and return its outputs. Idempotent. Raises M2HError if the engine fails."""
        ...


@dataclass(frozen=True)
class Finished:
    """A frame that was finished when it was begun: that of an engine on the CPU."""

    outputs: dict[str, NDArray[np.float32]]

    def wait_computed(self) -> None:
        """Return at once."""

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """Return the outputs."""
        return self.outputs


class Backend(Protocol):
    """A loaded engine. Not thread-safe: use it from one thread at a time."""

    description: str
    """Engine, version and device as text, for logs."""

    library: Path | None = None
    """The engine's library, if it runs on the CPU and `description` names its version and precision. The runtime then
    repeats a passed self-test only if something changed; None: the self-test runs at each load."""

    in_work: int = 1
    """Number of frames that the engine works on at the same time, if `begin` is called before `finish`."""

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Run the engine on an image.

        Args:
            image: float32 (N, 3, H, W), normalized, or uint8 for a sensor graph.
            out: Arrays to write the outputs to (see `new_outputs`); by default arrays that the next call overwrites.

        Returns:
            The outputs by name, float32; labels keep their type.

        Raises:
            M2HError: The image has the wrong shape, the engine fails, or it is closed.
        """
        ...

    def begin(self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]]) -> Pending:
        """Start to run the engine on an image; `image` and `out` belong to the engine until the frame is finished.

        Raises:
            M2HError: As `run`.
        """
        return Finished(self.run(image, out))

    def new_array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array for images that the engine reads directly."""
        return np.empty(shape, dtype)

    def new_outputs(self, batch: int = 1) -> dict[str, NDArray[np.float32]]:
        """Allocate arrays for `out`."""
        ...

    def close(self) -> None:
        """Release the engine's resources. Idempotent."""
        ...


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer in one run, from the engine's own profiler."""

    name: str
    kind: str
    """The engine's name of the layer's operation, such as `Conv`."""
    milliseconds: float


#: The layers of one run, in the order of execution.
Run = Sequence[LayerTime]
