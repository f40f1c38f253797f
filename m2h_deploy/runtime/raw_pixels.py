"""The runtime's side of a sensor graph: raw pixels go in as the camera gives them, finished arrays come out.

Both classes stand where `Preprocess` and `Postprocess` stand for a plain graph, and are called alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import InputSpec, Manifest
from m2h_deploy.errors import ImageError
from m2h_deploy.runtime.postprocess import Postprocess, Prediction, check_out, empty_prediction
from m2h_deploy.runtime.preprocess import as_color_image
from m2h_deploy.tasks import task_of


def bgr_to_nv12(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) BGR of even sides to (3/2 H, W): the plane of Y above the plane of interleaved U and V."""
    height, width = image.shape[:2]
    planar = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))
    chroma = planar[height:].reshape(2, height // 2, width // 2)
    return np.concatenate((planar[:height], chroma.transpose(1, 2, 0).reshape(height // 2, width)))


def nv12_to_bgr(raw: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3/2 H, W) NV12 to (H, W, 3) BGR, BT.601 from 16 to 235."""
    return np.asarray(cv2.cvtColor(raw, cv2.COLOR_YUV2BGR_NV12), np.uint8)


class SensorPreprocess:
    """A frame to the input of a sensor graph: nothing is computed but the color order. Not for two threads at once."""

    def __init__(self, spec: InputSpec, *, color: Literal["BGR", "RGB"] = "BGR") -> None:
        self.size = (spec.width, spec.height)
        self._sides = spec.sides
        self._nv12 = spec.layout == "NV12"
        self._rgb = color == "RGB"
        self._out = self.new_tensor()

    def new_tensor(self, batch: int = 1) -> NDArray[np.uint8]:
        """An array for `out`: uint8 (batch, H, W, 3) BGR or (batch, 3/2 H, W) NV12."""
        return np.empty((batch, *self._sides), np.uint8)

    def is_raw(self, image: Any) -> bool:
        """True for NV12 as the camera gives it, (3/2 H, W), where the engine takes that."""
        return self._nv12 and isinstance(image, np.ndarray) and image.shape == self._sides and image.dtype == np.uint8

    def __call__(self, image: NDArray[Any], out: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """uint8 (H, W, 3) in the caller's color order, gray or with alpha, or NV12 as `is_raw` says, to `out`.

        Raises M2HError where the image has another size than the engine was made for.
        """
        tensor = self._out if out is None else out
        if self.is_raw(image):
            np.copyto(tensor[0], image)
        else:
            self._fill(as_color_image(image), tensor[0])
        for index in range(1, len(tensor)):
            np.copyto(tensor[index], tensor[0])
        return tensor

    def _fill(self, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        if (width, height) != self.size:
            raise ImageError(
                f"image: {width} x {height} pixels, this bundle takes the camera's {self.size[0]} x {self.size[1]}: "
                f"export with --camera-size {width}x{height}, or without --sensor for any size"
            )
        bgr = image[:, :, ::-1] if self._rgb else image
        np.copyto(target, bgr_to_nv12(np.ascontiguousarray(bgr)) if self._nv12 else bgr)


def postprocess_for(manifest: Manifest) -> Any:
    """A `Postprocess`, or a `SensorPostprocess` where the engine gives finished results."""
    return SensorPostprocess() if manifest.sensor is not None else Postprocess(manifest.depth_range)


class SensorPostprocess:
    """One frame's finished outputs (batch dimension removed) to a prediction of its own."""

    def __call__(
        self, outputs: Mapping[str, NDArray[Any]], height: int, width: int, out: Prediction | None = None
    ) -> Prediction:
        """depth (H, W) meters or millimeters (uint16), labels (H, W), normals (H, W, 3), edges (H, W) probability.

        Written to the arrays of `out` where it is given, and else to new ones. Raises M2HError when `out` does not fit.
        """
        tasks = [task_of(name) for name in outputs]
        if out is None:
            out = empty_prediction(tasks, height, width)
        else:
            check_out(out, tasks, height, width)
        for task, value in zip(tasks, outputs.values(), strict=True):
            target = getattr(out, task)
            if task == "depth" and value.dtype == np.uint16:
                np.multiply(value, np.float32(1e-3), out=target)
            else:
                np.copyto(target, value)
        return out
