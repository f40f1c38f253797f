"""What every engine on a device has in common: its interface, and the options to open it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError

#: More threads than this are a mistake, and starting them can take a machine down.
MAX_THREADS = 1024


@dataclass(frozen=True)
class BackendOptions:
    """How to run a bundle on this machine; None leaves a choice to the manifest or the engine."""

    threads: int | None = None
    device: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    plugins: tuple[Path, ...] = ()
    """Plug-in libraries that the caller allows to be loaded; a bundle only names the ones it needs."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise M2HError(f"threads {self.threads}: must be between 1 and {MAX_THREADS}")


class Backend(Protocol):
    """A loaded engine. One thread at a time."""

    description: str
    """Engine, version and device in words, for logs."""

    def run(
        self, image: NDArray[np.float32], out: dict[str, NDArray[np.float32]] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """(N, 3, H, W) float32 to the outputs by name, float32.

        Written to the arrays of `out` (`new_outputs` makes them), and else to arrays that the next call overwrites.
        Raises M2HError on an image that the engine does not take, on an engine that fails, and after `close`.
        """
        ...

    def new_outputs(self, batch: int = 1) -> dict[str, NDArray[np.float32]]:
        """New arrays for `out`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. Harmless to call twice."""
        ...


@dataclass(frozen=True)
class LayerTime:
    """One layer of one run, from the engine's own profiler."""

    name: str
    kind: str
    """The engine's word for what it does, such as `Conv`."""
    milliseconds: float


#: The layers of one run, in the order of execution.
Run = Sequence[LayerTime]
