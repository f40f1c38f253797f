"""Outputs for frames and their predictions: files, a video, a window, Rerun."""

from __future__ import annotations

from abc import ABC, abstractmethod

from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sources.source import SourceFrame


class Sink(ABC):
    """Receiver of frames and their predictions."""

    wanted: bool = True
    """False once the window was closed; the caller then stops."""

    @abstractmethod
    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Write or show one frame.

        Args:
            frame: the frame.
            prediction: its prediction, of the size of the image.

        Raises:
            M2HError: it cannot be written.
        """

    def close(self) -> None:  # noqa: B027 (not every sink has something to finish)
        """Finish the output. Idempotent."""
