"""Show predictions: a video file of the four tasks, or a window."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.causes import MachineError, reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import NewFile, check_space, check_writable, library_path
from m2h_deploy.files.provenance import mark_mp4
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks import Sink
from m2h_deploy.sources.source import SourceFrame
from m2h_deploy.visualize.draw import depth_span, draw_panes

#: Weight of the previous depth span in the smoothed one. Colors adapt to a scene within a second and do not flicker.
_INERTIA = 0.9


class Panes:
    """Draws frames consistently: with one size and a slowly changing depth span."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._span: tuple[float, float] | None = None
        self._size: tuple[int, int] | None = None

    def draw(self, image: NDArray[np.uint8], prediction: Prediction) -> NDArray[np.uint8]:
        """Draw the four tasks as one picture.

        Args:
            image: uint8 (H, W, 3) BGR.
            prediction: its prediction, of the size of the image.

        Returns:
            uint8 (h, w, 3) BGR, of the size of the first picture drawn.
        """
        if prediction.depth is not None:
            near, far = depth_span(prediction.depth)
            old = self._span or (near, far)
            keep = _INERTIA
            self._span = (keep * old[0] + (1 - keep) * near, keep * old[1] + (1 - keep) * far)
        picture = draw_panes(image, prediction, self._classes, span=self._span)
        self._size = self._size or (picture.shape[1], picture.shape[0])
        if (picture.shape[1], picture.shape[0]) != self._size:
            picture = np.asarray(cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        return picture


class VideoFile(Sink):
    """Sink that writes an .mp4 of the four tasks.

    The file appears under its name when `close` is called, also after an interrupt.
    """

    def __init__(self, path: str | os.PathLike[str], classes: Classes, *, rate: float | None = None) -> None:
        """Check that the video can be written.

        Args:
            path: the file, ending in .mp4.
            classes: names and colors of the semantic classes.
            rate: frames per second; None for 10.

        Raises:
            M2HError: another ending, or the file cannot be written.
        """
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise M2HError(f"{self.path}: a video is written as MP4: give a name that ends in .mp4")
        check_writable(self.path)
        self._file = NewFile(self.path)
        self._panes, self._rate = Panes(classes), rate or 10.0
        self._writer: Any = None

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Append one frame.

        Args:
            frame: the frame.
            prediction: its prediction, of the size of the image.

        Raises:
            M2HError: OpenCV has no encoder, or the disk is full.
        """
        picture = self._panes.draw(frame.image, prediction)
        check_space(self._file.temporary.parent, self.path)  # OpenCV does not report that it could not write
        if self._writer is None:
            size = (picture.shape[1], picture.shape[0])
            # Absolute, because FFmpeg reads the text before a colon as a protocol.
            with library_path(self._file.temporary.absolute()) as name:
                self._writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*"mp4v"), self._rate, size)
            if not self._writer.isOpened():
                self._writer = None
                self._file.discard()
                raise M2HError(f"this OpenCV cannot write {self.path}: it lacks an encoder for MPEG-4")
        self._writer.write(picture)

    def close(self) -> None:
        """Finish the file. Without frames, no file is written. Idempotent."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        try:
            mark_mp4(self._file.temporary)
        except OSError as error:
            self._file.discard()
            raise MachineError(f"cannot write {self.path}: {reason(error)}") from None
        self._file.finish()


class Window(Sink):
    """Sink that shows the four tasks in a window; `q` or Escape closes it."""

    TITLE = "m2h-deploy"

    def __init__(self, classes: Classes) -> None:
        """Open the window.

        Raises:
            M2HError: OpenCV was built without windows, or the machine has no display.
        """
        display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
        if not has_windows():
            raise M2HError(
                "this OpenCV has no windows: pip uninstall opencv-python-headless, then pip install opencv-python; "
                "or write --video FILE.mp4"
            )
        if sys.platform == "linux" and not display:
            raise M2HError("there is no display for a window: write --video FILE.mp4 instead")
        self._panes = Panes(classes)
        cv2.namedWindow(self.TITLE, cv2.WINDOW_NORMAL)

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Show one frame, and set `wanted` to False if `q` or Escape was pressed."""
        cv2.imshow(self.TITLE, self._panes.draw(frame.image, prediction))
        key = cv2.waitKey(1) & 0xFF
        self.wanted = key not in (ord("q"), 27)

    def close(self) -> None:
        """Close the window. Idempotent."""
        cv2.destroyAllWindows()


def has_windows() -> bool:
    """Return whether this OpenCV was built with windows; opencv-python-headless was not."""
    lines = [
        line.split(":", 1)[1] for line in cv2.getBuildInformation().splitlines() if line.strip().startswith("GUI:")
    ]
    return bool(lines) and lines[0].strip() != "NONE"
