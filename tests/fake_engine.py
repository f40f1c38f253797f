"""A fake engine that takes no time, to test the runtime alone."""

from __future__ import annotations

import numpy as np

from m2h_deploy.backends import Backend
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import M2HError


class FakeEngine(Backend):
    """A backend with a bundle's shapes that returns zeros."""

    description = "a fake engine"

    def __init__(self, bundle: Bundle) -> None:
        self._sides = {spec.name: tuple(spec.shape[1:]) for spec in bundle.manifest.outputs}
        self._own = self.new_outputs(bundle.manifest.input.batch or 1)
        self.closed = False

    def new_outputs(self, batch: int = 1) -> dict[str, np.ndarray]:
        return {name: np.zeros((batch, *sides), np.float32) for name, sides in self._sides.items()}

    def run(self, image: np.ndarray, out: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        if self.closed:
            raise M2HError("closed")
        return self._own if out is None else out

    def close(self) -> None:
        self.closed = True
