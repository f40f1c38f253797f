"""Write predictions as a Rerun recording (https://rerun.io). Needs the extra `rerun`."""

from __future__ import annotations

import os
from pathlib import Path
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
from m2h_deploy.visualize.draw import draw_edges, draw_normals

#: Approximate number of points per frame: every pixel of a small image, a regular grid of pixels of a large one.
_POINTS = 40_000


class RerunLog(Sink):
    """Sink that writes a .rrd file. The file appears under its name when `close` is called, also after an interrupt.

    Entities, on the timeline `frame`: `camera/image`, `camera/depth` (meters, under the pinhole `camera`, which a
    viewer turns into a cloud), `points` (the same depth as colored points, in meters, x right, y down, z forward),
    `camera/labels` with the class names, `camera/normals`, `camera/edges`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        classes: Classes,
        depth_range: tuple[float, float],
        *,
        intrinsics: Intrinsics | None = None,
        fov: float = ASSUMED_FOV,
    ) -> None:
        """Start the recording.

        Args:
            path: the .rrd file.
            classes: names and colors of the semantic classes.
            depth_range: (nearest, farthest) depth of the color scale, meters.
            intrinsics: the camera, in pixels of the images; None to assume one with `fov`.
            fov: horizontal field of view of the assumed camera, degrees.

        Raises:
            M2HError: the file cannot be written, or the field of view is impossible.
            ModuleNotFoundError: rerun-sdk is not installed.
        """
        import rerun as rr

        intrinsics_of_view(fov, 16, 16)  # raises on an impossible field of view
        self._rr = rr
        self.path = Path(path)
        self._intrinsics, self._fov, self._depth_range = intrinsics, fov, depth_range
        self._file = NewFile(self.path)
        check_writable(self.path)
        self._recording: Any = rr.RecordingStream("m2h-deploy", send_properties=False)
        with library_path(self._file.temporary) as name:
            self._recording.save(name)
        colors = [rr.AnnotationInfo(id=i, label=classes.names[i], color=classes.palette[i]) for i in _indices(classes)]
        self._recording.log("/", rr.AnnotationContext(colors), static=True)
        self._recording.log("/", rr.ViewCoordinates.RDF, static=True)
        self._count = 0

    def add(self, frame: SourceFrame, prediction: Prediction) -> None:
        """Log one frame.

        Args:
            frame: the frame.
            prediction: its prediction, of the size of the image.

        Raises:
            M2HError: the disk is full.
        """
        check_space(self._file.temporary.parent, self.path)  # Rerun does not report that it could not write
        rr, log = self._rr, self._recording.log
        self._recording.set_time("frame", sequence=self._count)
        self._count += 1
        image = frame.image
        height, width = image.shape[:2]
        camera = self._intrinsics or intrinsics_of_view(self._fov, height, width)
        matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        log("camera", rr.Pinhole(image_from_camera=matrix, resolution=(width, height)))
        log("camera/image", rr.Image(image, color_model="BGR").compress(jpeg_quality=90))
        if prediction.depth is not None:
            near, far = self._depth_range
            log("camera/depth", rr.DepthImage(prediction.depth, meter=1.0, depth_range=(near, far)))
            points, colors = point_cloud(image, prediction.depth, camera)
            log("points", rr.Points3D(points, colors=colors, radii=rr.Radius.ui_points(1.5)))
        if prediction.semantics is not None:
            log("camera/labels", rr.SegmentationImage(prediction.semantics))
        if prediction.normals is not None:
            log("camera/normals", rr.Image(draw_normals(prediction.normals), color_model="BGR").compress())
        if prediction.edges is not None:
            log("camera/edges", rr.Image(draw_edges(prediction.edges)[:, :, 0], color_model="L").compress())

    def close(self) -> None:
        """Finish the file, or discard it if no frame was added. Idempotent."""
        if self._recording is None:
            return
        self._recording.flush()
        self._recording.disconnect()
        self._recording = None
        self._file.finish() if self._count else self._file.discard()


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
