"""Convert point clouds to sensor_msgs/PointCloud2, without ROS: any object with its fields works."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.point_cloud import PointCloud, Points
from m2h_deploy.runtime.postprocess import Prediction
from m2h_perception.calibration import View

#: PointField's numbers of types.
_TYPES = {np.dtype(np.uint32): 6, np.dtype(np.float32): 7}


class Field(NamedTuple):
    """A PointField."""

    name: str
    offset: int
    datatype: int
    count: int = 1


class Cloud(NamedTuple):
    """The fields of a PointCloud2 message except its header."""

    points: NDArray[np.void]
    """Structured, (H, W) organized or (N,) unorganized."""
    dense: bool
    """Whether every number of every point is finite."""


def cloud_fields(dtype: np.dtype[np.void]) -> list[Field]:
    """Return the fields of structured points, in memory order."""
    return [Field(name, place[1], _TYPES[place[0]]) for name, place in (dtype.fields or {}).items()]


def fill_cloud(message: Any, cloud: Cloud, header: Any, make_field: Callable[..., Any]) -> Any:
    """Write a cloud and a header to a PointCloud2 message and return it; `make_field` is the class PointField."""
    points = cloud.points
    height, width = points.shape if points.ndim == 2 else (1, points.shape[0])
    message.header = header
    message.height, message.width = int(height), int(width)
    message.fields = [make_field(**field._asdict()) for field in cloud_fields(points.dtype)]
    message.is_bigendian = sys.byteorder == "big"
    message.point_step = points.dtype.itemsize
    message.row_step = points.dtype.itemsize * int(width)
    # As for images, rclpy checks every element of any other type than array.array.
    data = array.array("B")
    data.frombytes(points.reshape(-1).view(np.uint8).data)
    message.data, message.is_dense = data, bool(cloud.dense)
    return message


class Clouds:
    """The clouds of one frame: all points, those of the ground, and all others. They share one projection."""

    def __init__(
        self,
        project: PointCloud,
        *,
        dense: bool = False,
        ground: NDArray[np.bool_] | None = None,
        remap: NDArray[np.uint8] | None = None,
    ) -> None:
        """Choose what the clouds hold.

        Args:
            project: makes the points.
            dense: whether `all` leaves out points without depth.
            ground: whether each class, before `remap`, is ground: bool (256,).
            remap: label that points have for each class, uint8 (256,).
        """
        self._project, self._dense, self._remap = project, dense, remap
        self._ground = None if ground is None else ground.astype(np.uint8)
        self._points: Points | None = None
        self._is_ground: NDArray[np.bool_] | None = None

    def take(self, image: NDArray[np.uint8], prediction: Prediction, view: View) -> None:
        """Project a frame; the other methods are about it until the next one. Its intrinsics must be known."""
        assert view.intrinsics is not None
        labels = prediction.semantics
        published = labels if labels is None or self._remap is None else cv2.LUT(labels, self._remap)
        self._points = self._project(image, prediction, view.intrinsics, labels=published, outside=view.outside)
        if self._ground is not None and labels is not None:
            step = self._project.decimation
            self._is_ground = cv2.LUT(np.ascontiguousarray(labels[::step, ::step]), self._ground).view(np.bool_)

    def all(self) -> Cloud:
        """Return all points."""
        points = self._points
        assert points is not None
        if self._dense:
            return Cloud(points.dense(), True)
        return Cloud(points.cloud, bool(points.valid.all()))

    def ground(self) -> Cloud:
        """Return the points of the ground that have depth."""
        assert self._points is not None and self._is_ground is not None
        return Cloud(self._points.dense(self._is_ground), True)

    def obstacles(self) -> Cloud:
        """Return the points that have depth and are not ground."""
        assert self._points is not None and self._is_ground is not None
        return Cloud(self._points.dense(~self._is_ground), True)
