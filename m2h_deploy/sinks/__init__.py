"""Where results go: files, a video, a window, Rerun."""

from __future__ import annotations

from abc import ABC, abstractmethod

from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sources import SourceFrame


class Sink(ABC):
    """Takes frames and their predictions."""

    wanted: bool = True
    """False when no more frames are wanted, because a window was closed."""

    @abstractmethod
    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Take one frame; the prediction has the size of its image. Raises M2HError where it cannot be written."""

    def close(self) -> None:  # noqa: B027 (not every sink has something to finish)
        """Finish what was written. Idempotent."""
