"""Show predictions live in a browser or in Rerun's viewer. Needs the extra `rerun`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Condition, Thread
from time import monotonic
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.camera import ASSUMED_FOV, intrinsics_of_view
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.errors import first_line
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks import Sink
from m2h_deploy.sinks.rerun import FrameLog, FrameRate, layout
from m2h_deploy.sinks.view_server import PORT, ViewServer, check_address
from m2h_deploy.sources.source import SourceFrame
from m2h_deploy.tasks import TASKS

#: Longest side of what is sent, pixels: at ten frames a second about 6 MB/s, for one viewer.
LONGEST = 480

#: Shortest time between two frames that are sent, seconds.
_INTERVAL = 0.1

#: Seconds to wait for the server to accept a frame, before looking whether it still runs.
_FLUSH = 0.5

#: Seconds for sending the last frame.
_LAST = 2.0


class LiveView(Sink):
    """Sink that shows frames in a browser.

    A thread sends the newest frame to the server, at most ten a second and reduced to 480 pixels; a frame that is
    followed by another before it could be sent is dropped. So `add` never waits, whatever the viewers do. If the server
    ends, the view ends and the run continues.
    """

    def __init__(
        self,
        classes: Classes,
        depth_range: tuple[float, float],
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        intrinsics: Intrinsics | None = None,
        fov: float = ASSUMED_FOV,
        tasks: Sequence[str] = TASKS,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        """Start the server and the thread.

        Args:
            classes: names and colors of the semantic classes.
            depth_range: (nearest, farthest) depth of the color scale, meters.
            host: IP address to listen on.
            port: port of the page; the data is on the next one.
            intrinsics: the camera, in pixels of the images; None to assume one with `fov`.
            fov: horizontal field of view of the assumed camera, degrees.
            tasks: the tasks that get a pane.
            complain: called from the thread with the reason if the view ends early.

        Raises:
            M2HError: the field of view is impossible, or the server does not start.
            ModuleNotFoundError: rerun-sdk is not installed.
        """
        import rerun as rr

        intrinsics_of_view(fov, 16, 16)  # raises on an impossible field of view
        self._complain, self._server = complain, ViewServer(host, port)
        try:
            self._stream: Any = rr.RecordingStream("m2h-deploy", send_properties=False)
            self._stream.connect_grpc(self._server.data, default_blueprint=layout(tasks, points=False))
            self._log = FrameLog(self._stream, classes, depth_range, intrinsics=intrinsics, fov=fov, points=False)
        except BaseException:
            self._server.stop()
            raise
        self._rate, self._count = FrameRate(), 0
        self._changed = Condition()
        self._next: tuple[int, SourceFrame, Prediction, float | None] | None = None
        self._closing = False
        self._thread = Thread(target=self._run, name="m2h-view", daemon=True)
        self._thread.start()

    @property
    def page(self) -> str:
        """Address of the page, for a browser."""
        return self._server.page

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Hand a frame to the thread. Its arrays must not be written to afterwards."""
        with self._changed:
            self._next = (self._count, frame, prediction, self._rate.count())
            self._count += 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Return when the server ends, or after Ctrl-C."""
        try:
            self._thread.join()
        except KeyboardInterrupt:
            return

    def close(self) -> None:
        """Send the last frame and stop the server; its ports are free afterwards. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_LAST)
        self._server.stop()  # first: disconnecting waits for a server that does not read
        self._thread.join(_LAST)
        self._stream.disconnect()

    def _run(self) -> None:
        try:
            while (item := self._take()) is not None:
                number, frame, prediction, rate = item
                image, small = reduce_frame(frame.image, prediction, LONGEST)
                self._log.add(number, image, small, rate, of_size=frame.image.shape[:2])
                self._send()
        except Exception as error:  # the view must not end the run, whatever happens to it
            if self._complain is not None and not self._closing:
                self._complain(f"the view ended ({first_line(error)}); the run continues")

    def _take(self) -> tuple[int, SourceFrame, Prediction, float | None] | None:
        """Wait for the next frame; None if there is none and the view is being closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, _INTERVAL)
            while self._next is None and not self._closing:
                self._changed.wait(1.0)
                if not self._server.running:
                    raise RuntimeError("its server ended")
            item, self._next = self._next, None
        return item

    def _send(self) -> None:
        """Wait until the server has accepted the frame, so that nothing piles up."""
        while True:
            start = monotonic()
            try:
                self._stream.flush(timeout_sec=_FLUSH)
            except RuntimeError:
                if not self._server.running:
                    raise RuntimeError("its server ended") from None
                if monotonic() - start < _FLUSH / 2:  # not a timeout
                    raise
            else:
                return


def check_view(host: str, port: int) -> None:
    """Check that a view can be served, before long work.

    Args:
        host: IP address to listen on.
        port: port of the page; the data is on the next one.

    Raises:
        M2HError: the address cannot be used.
        ModuleNotFoundError: rerun-sdk is not installed.
    """
    _import_rerun()
    check_address(host, port)


def _import_rerun() -> None:
    """Import Rerun without its log on stderr, which would repeat what `complain` says, unless RUST_LOG is set."""
    quiet = "rerun" not in sys.modules and "RUST_LOG" not in os.environ
    if quiet:
        os.environ["RUST_LOG"] = "off"  # read during the import
    try:
        import rerun  # noqa: F401
    finally:
        if quiet:
            del os.environ["RUST_LOG"]


def reduce_frame(
    image: NDArray[np.uint8], prediction: Prediction, longest: int
) -> tuple[NDArray[np.uint8], Prediction]:
    """Reduce a frame for sending.

    Args:
        image: uint8 (H, W, 3) BGR.
        prediction: its prediction, of the size of the image.
        longest: longest side of the result, pixels; a smaller image keeps its size.

    Returns:
        The image and its prediction, (h, w); the depth as uint16 millimeters, at most 65.535 m.
    """
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))

    def resized(array: NDArray[Any] | None, interpolation: int = cv2.INTER_NEAREST) -> Any:
        return array if array is None or scale == 1 else cv2.resize(array, size, interpolation=interpolation)

    depth = resized(prediction.depth)
    if depth is not None:
        depth = np.rint(np.clip(depth * 1000, 0, 65535)).astype(np.uint16)
    small = replace(
        prediction,
        depth=depth,
        semantics=resized(prediction.semantics),
        normals=resized(prediction.normals),
        edges=resized(prediction.edges, cv2.INTER_AREA),
    )
    return resized(image, cv2.INTER_AREA), small
