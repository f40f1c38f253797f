"""Log predictions to Rerun (https://rerun.io), and write them as a recording. Needs the extra `rerun`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.camera import ASSUMED_FOV, intrinsics_of_view
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.files.atomic import NewFile, check_space, check_writable, library_path
from m2h_deploy.point_cloud import PointCloud, colors, positions
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks import Sink
from m2h_deploy.sources.source import SourceFrame
from m2h_deploy.tasks import TASKS
from m2h_deploy.visualize.draw import draw_edges, draw_normals

#: Approximate number of points per frame: every pixel of a small image, a regular grid of pixels of a large one.
_POINTS = 40_000

#: Entity of each task.
_ENTITIES = {
    "depth": "camera/depth",
    "semantics": "camera/labels",
    "normals": "camera/normals",
    "edges": "camera/edges",
}


class FrameRate:
    """Frames per second of the last frames, by the clock."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=10)

    def count(self) -> float | None:
        """Count one frame, and return the rate; None for the first frame."""
        self._times.append(monotonic())
        span = self._times[-1] - self._times[0]
        return (len(self._times) - 1) / span if span > 0 else None


class FrameLog:
    """Logs frames to a recording stream, which the caller opens and closes.

    Entities, on the timeline `frame`: `camera/image`, `camera/depth` (meters, under the pinhole `camera`, which a
    viewer turns into a cloud), `points` (the same depth as colored points, in meters, x right, y down, z forward),
    `camera/labels` with the class names, `camera/normals`, `camera/edges`; the milliseconds of each stage
    (`latency/inference`, ...) and their sum (`latency/total`); `rate/frames_per_second`.
    """

    def __init__(
        self,
        stream: Any,
        classes: Classes,
        depth_range: tuple[float, float],
        *,
        intrinsics: Intrinsics | None = None,
        fov: float = ASSUMED_FOV,
        points: bool = True,
    ) -> None:
        """Log what all frames share.

        Args:
            stream: the `rerun.RecordingStream`.
            classes: names and colors of the semantic classes.
            depth_range: (nearest, farthest) depth of the color scale, meters.
            intrinsics: the camera, in pixels of the images; None to assume one with `fov`.
            fov: horizontal field of view of the assumed camera, degrees.
            points: whether to log `points`.

        Raises:
            M2HError: the field of view is impossible.
        """
        import rerun as rr

        intrinsics_of_view(fov, 16, 16)  # raises on an impossible field of view
        self._rr, self._stream, self._points = rr, stream, points
        self._intrinsics, self._fov, self._depth_range = intrinsics, fov, depth_range
        colors = [rr.AnnotationInfo(id=i, label=classes.names[i], color=classes.palette[i]) for i in _indices(classes)]
        stream.log("/", rr.AnnotationContext(colors), static=True)
        stream.log("/", rr.ViewCoordinates.RDF, static=True)

    def add(
        self,
        number: int,
        image: NDArray[np.uint8],
        prediction: Prediction,
        rate: float | None,
        *,
        of_size: tuple[int, int] | None = None,
    ) -> None:
        """Log one frame.

        Args:
            number: the frame's number.
            image: uint8 (H, W, 3) BGR.
            prediction: its prediction, of the size of the image. A depth of uint16 is in millimeters.
            rate: frames per second, None if unknown.
            of_size: (height, width) of the picture that was resized to `image`, in whose pixels the intrinsics are.
        """
        rr, log = self._rr, self._stream.log
        self._stream.set_time("frame", sequence=number)
        height, width = image.shape[:2]
        camera = self._intrinsics or intrinsics_of_view(self._fov, height, width)
        if self._intrinsics is not None and of_size is not None:
            camera = camera.scaled(height, width, *of_size)
        matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        log("camera", rr.Pinhole(image_from_camera=matrix, resolution=(width, height)))
        log("camera/image", rr.Image(image, color_model="BGR").compress(jpeg_quality=90))
        if prediction.depth is not None:
            unit = 1000.0 if prediction.depth.dtype == np.uint16 else 1.0
            near, far = self._depth_range
            depth = rr.DepthImage(prediction.depth, meter=unit, depth_range=(near * unit, far * unit))
            log(_ENTITIES["depth"], depth)
            if self._points:
                points, colors = point_cloud(image, prediction.depth, camera)
                log("points", rr.Points3D(points, colors=colors, radii=rr.Radius.ui_points(1.5)))
        if prediction.semantics is not None:
            log(_ENTITIES["semantics"], rr.SegmentationImage(prediction.semantics))
        if prediction.normals is not None:
            log(_ENTITIES["normals"], rr.Image(draw_normals(prediction.normals), color_model="BGR").compress())
        if prediction.edges is not None:
            log(_ENTITIES["edges"], rr.Image(draw_edges(prediction.edges)[:, :, 0], color_model="L").compress())
        self._log_times(prediction.timings, rate)

    def _log_times(self, timings: dict[str, float], rate: float | None) -> None:
        for stage, milliseconds in (timings | {"total": sum(timings.values())} if timings else {}).items():
            self._stream.log(f"latency/{stage}", self._rr.Scalars(milliseconds))
        if rate is not None:
            self._stream.log("rate/frames_per_second", self._rr.Scalars(rate))


class RerunLog(Sink):
    """Sink that writes a .rrd file. The file appears under its name when `close` is called, also after an interrupt.

    `FrameLog` lists its entities. The file holds a layout of panes and plots, too.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: Classes,
        depth_range: tuple[float, float],
        *,
        intrinsics: Intrinsics | None = None,
        fov: float = ASSUMED_FOV,
        tasks: Sequence[str] = TASKS,
    ) -> None:
        """Start the recording.

        Args:
            path: the .rrd file.
            classes: names and colors of the semantic classes.
            depth_range: (nearest, farthest) depth of the color scale, meters.
            intrinsics: the camera, in pixels of the images; None to assume one with `fov`.
            fov: horizontal field of view of the assumed camera, degrees.
            tasks: the tasks that get a pane.

        Raises:
            M2HError: the file cannot be written, or the field of view is impossible.
            ModuleNotFoundError: rerun-sdk is not installed.
        """
        import rerun as rr

        intrinsics_of_view(fov, 16, 16)  # raises on an impossible field of view
        self.path = Path(path)
        self._file = NewFile(self.path)
        check_writable(self.path)
        self._recording: Any = rr.RecordingStream("m2h-deploy", send_properties=False)
        with library_path(self._file.temporary) as name:
            self._recording.save(name, default_blueprint=layout(tasks))
        self._log = FrameLog(self._recording, classes, depth_range, intrinsics=intrinsics, fov=fov)
        self._count, self._rate = 0, FrameRate()

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Log one frame.

        Args:
            frame: the frame.
            prediction: its prediction, of the size of the image.

        Raises:
            M2HError: the disk is full.
        """
        check_space(self._file.temporary.parent, self.path)  # Rerun does not report that it could not write
        self._log.add(self._count, frame.image, prediction, self._rate.count())
        self._count += 1

    def close(self) -> None:
        """Finish the file, or discard it if no frame was added. Idempotent."""
        if self._recording is None:
            return
        self._recording.flush()
        self._recording.disconnect()
        self._recording = None
        self._file.finish() if self._count else self._file.discard()


def layout(tasks: Sequence[str], *, points: bool = True) -> Any:
    """Make a Rerun blueprint: a pane for the image, each task and the cloud, above plots of the latency and the rate.

    Args:
        tasks: names of the tasks.
        points: whether the recording has `points`; otherwise the cloud is that of the depth image.
    """
    import rerun.blueprint as rrb

    panes: list[rrb.View] = [rrb.Spatial2DView(origin="camera/image", name="image")]
    panes += [rrb.Spatial2DView(origin=_ENTITIES[task], name=task) for task in TASKS if task in tasks]
    if "depth" in tasks:
        shown = ["/camera", "/camera/image", "/points" if points else "/camera/depth"]
        panes.append(rrb.Spatial3DView(origin="/", contents=shown, name="cloud"))
    plots = [
        rrb.TimeSeriesView(origin="latency", name="latency in milliseconds"),
        rrb.TimeSeriesView(origin="rate", name="frames per second"),
    ]
    page = rrb.Vertical(rrb.Grid(*panes), rrb.Horizontal(*plots), row_shares=[3, 1])
    return rrb.Blueprint(page, collapse_panels=True)


def point_cloud(
    image: NDArray[np.uint8], depth: NDArray[np.float32], camera: Intrinsics
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Make a colored point cloud from a regular subset of the pixels that have depth.

    Args:
        image: uint8 (H, W, 3) BGR.
        depth: float32 (H, W), meters, 0 where unknown.
        camera: its intrinsics, pixels.

    Returns:
        Points (N, 3) in meters, x right, y down, z forward, and their RGB colors, uint8 (N, 3).
    """
    height, width = depth.shape
    stride = max(1, round((height * width / _POINTS) ** 0.5))
    project = PointCloud(decimation=stride, labels=False)
    points = project(image, Prediction(depth, None, None, None), camera).dense()
    return positions(points), colors(points)


def _indices(classes: Classes) -> range:
    return range(min(len(classes.names), len(classes.palette)))
