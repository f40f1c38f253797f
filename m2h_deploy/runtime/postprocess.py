"""Convert network outputs to depth, labels, normals and edges, at the image's size or the network's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.manifest import Manifest
from m2h_deploy.errors import M2HError
from m2h_deploy.tasks import TABLE, TASKS, task_of

Resolution = Literal["image", "network"]


@dataclass(frozen=True)
class Prediction:
    """Results of one frame, H x W of the image, or of the network with `resolution="network"`.

    Tasks that the engine does not have are None.
    """

    depth: NDArray[np.float32] | None
    """(H, W) meters along the optical axis, not along the ray."""
    semantics: NDArray[np.uint8] | None
    """(H, W) index into the manifest's `classes.names`; never 255, which marks unlabeled pixels in data sets."""
    normals: NDArray[np.float32] | None
    """(H, W, 3) unit vectors towards the camera: x left, y up, z towards the camera; a floor is (0, 1, 0)."""
    edges: NDArray[np.float32] | None
    """(H, W) probability 0..1 of an object boundary."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds: preprocess, inference, postprocess."""


def empty_prediction(tasks: Iterable[str], height: int, width: int) -> Prediction:
    """Allocate a prediction of `tasks` with arrays of this size, for `out=`."""
    arrays: dict[str, NDArray[Any] | None] = dict.fromkeys(TASKS)
    for task in tasks:
        arrays[task] = np.empty((height, width, *TABLE[task].components), TABLE[task].dtype)
    return Prediction(**arrays)  # type: ignore[arg-type]


def nonfinite_outputs(outputs: Mapping[str, NDArray[np.float32]]) -> list[str]:
    """Return the outputs that contain NaN or infinity, found with one sum each and no temporary array."""
    # A float32 sum overflows only if a value is practically infinite.
    with np.errstate(all="ignore"):
        return [name for name, value in outputs.items() if not np.isfinite(np.add.reduce(value, axis=None))]


class Postprocess:
    """Convert one frame's outputs (batch dimension removed) to arrays of the image's size, or the network's.

    Labels are computed at the network's size and resized by nearest neighbor, as in the published node; with
    `full_labels` the logits are resized first, class by class. The others are resized bilinearly, then depth is clamped
    and calibrated, and normals are normalized again. Not thread-safe: intermediate buffers are reused, so that with
    `out` a frame allocates no memory.
    """

    def __init__(
        self,
        depth_range: tuple[float, float],
        calibration: DepthCalibration | None = None,
        *,
        full_labels: bool = False,
    ) -> None:
        self.depth_range, self.calibration, self.full_labels = depth_range, calibration, full_labels
        self._buffers: dict[str, NDArray[Any]] = {}

    def __call__(
        self, outputs: Mapping[str, NDArray[np.float32]], height: int, width: int, out: Prediction | None = None
    ) -> Prediction:
        """Convert the outputs of one frame to a prediction.

        Args:
            outputs: depth (1, h, w) meters, semantics (C, h, w) logits, normals (3, h, w), edges (1, h, w) logits.
            height: Height of the results.
            width: Width of the results.
            out: Prediction to write to; by default a new one.

        Raises:
            M2HError: `out` has another size or lacks a task.
        """
        if out is None:
            out = empty_prediction(outputs, height, width)
        else:
            check_out(out, outputs, height, width)
        if "depth" in outputs:
            self._depth(outputs["depth"], out.depth)
        if "semantics" in outputs:
            self._semantics(outputs["semantics"], out.semantics)
        if "normals" in outputs:
            self._normals(outputs["normals"], out.normals)
        if "edges" in outputs:
            self._edges(outputs["edges"], out.edges)
        return out

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name] = np.empty(shape, dtype)
        return buffer

    def _depth(self, depth: NDArray[np.float32], out: Any) -> None:
        _resize(depth[0], out)
        np.clip(out, *self.depth_range, out=out)
        if self.calibration is not None:
            self.calibration.apply(out)

    def _semantics(self, logits: NDArray[np.float32], out: Any) -> None:
        if self.full_labels and logits.shape[1:] != out.shape:
            self._argmax_resized(logits, out)
            return
        labels = self._argmax(logits)
        if labels.shape == out.shape:
            np.copyto(out, labels)
        else:
            cv2.resize(labels, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_NEAREST)

    def _argmax(self, logits: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Compute the argmax over the first axis; the first of equal values wins.

        It takes one pass per plane in OpenCV's loops: numpy's own works pixel by pixel and takes several times as long.
        """
        shape = logits.shape[1:]
        best, labels = self._buffer("best", shape, np.float32), self._buffer("labels", shape, np.uint8)
        better = self._buffer("better", shape, np.uint8)
        np.copyto(best, logits[0])
        labels.fill(0)
        for index in range(1, len(logits)):
            cv2.compare(logits[index], best, cv2.CMP_GT, dst=better)
            cv2.max(logits[index], best, dst=best)
            # Indices only grow, so the largest one that was better is the label.
            np.bitwise_and(better, np.uint8(index), out=better)
            cv2.max(labels, better, dst=labels)
        return labels

    def _argmax_resized(self, logits: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        """Compute the argmax of the logits resized to `out`, in memory for one class and the running maximum."""
        best, resized = (self._buffer(name, out.shape, np.float32) for name in ("best", "resized"))
        better = self._buffer("better", out.shape, np.uint8)
        _resize(logits[0], best)
        out.fill(0)
        for index in range(1, len(logits)):
            _resize(logits[index], resized)
            cv2.compare(resized, best, cv2.CMP_GT, dst=better)
            cv2.max(resized, best, dst=best)
            np.bitwise_and(better, np.uint8(index), out=better)
            cv2.max(out, better, dst=out)

    def _normals(self, normals: NDArray[np.float32], out: Any) -> None:
        _, h, w = normals.shape
        if (h, w) == out.shape[:2]:
            cv2.merge(list(normals), dst=out)
        else:
            together = self._buffer("together", (h, w, 3), np.float32)
            cv2.merge(list(normals), dst=together)
            _resize(together, out)
        length, square = (self._buffer(name, out.shape[:2], np.float32) for name in ("length", "square"))
        # Channel by channel: broadcasting over the last axis is slower, and numpy allocates for it.
        channels = [out[:, :, channel] for channel in range(3)]
        np.multiply(channels[0], channels[0], out=length)
        for channel in channels[1:]:
            np.add(length, np.multiply(channel, channel, out=square), out=length)
        np.sqrt(length, out=length)
        # Opposite normals can cancel out between two pixels; a zero vector stays zero.
        np.maximum(length, 1e-12, out=length)
        for channel in channels:
            np.divide(channel, length, out=channel)

    def _edges(self, logits: NDArray[np.float32], out: Any) -> None:
        probability = self._buffer("probability", logits.shape[1:], np.float32)
        np.clip(logits[0], -80, 80, out=probability)
        np.negative(probability, out=probability)
        np.exp(probability, out=probability)
        probability += 1
        np.reciprocal(probability, out=probability)
        _resize(probability, out)


def check_out(out: Prediction, tasks: Iterable[str], height: int, width: int) -> None:
    """Raise M2HError if `out` lacks a task or has an array of another size or type."""
    for task in tasks:
        dtype, shape = TABLE[task].dtype, (height, width, *TABLE[task].components)
        array = getattr(out, task)
        # OpenCV would write to a copy of a non-contiguous array, and the caller's would stay unchanged.
        if array is None or array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            raise M2HError(f"out.{task} is {found}: expected contiguous {dtype} {shape}")


def _resize(array: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Resize bilinearly to the size of `out`."""
    if array.shape[:2] == out.shape[:2]:
        np.copyto(out, array)
    else:
        cv2.resize(array, (out.shape[1], out.shape[0]), dst=out, interpolation=cv2.INTER_LINEAR)


class SensorPostprocess:
    """Copy a sensor graph's final outputs (batch dimension removed) to a prediction, and calibrate its depth."""

    def __init__(self, calibration: DepthCalibration | None = None) -> None:
        self.calibration = calibration

    def __call__(
        self, outputs: Mapping[str, NDArray[Any]], height: int, width: int, out: Prediction | None = None
    ) -> Prediction:
        """Copy the outputs of one frame to a prediction.

        Args:
            outputs: depth (H, W) meters or millimeters (uint16), labels (H, W), normals (H, W, 3), edges (H, W)
                probability.
            height: Height of the results.
            width: Width of the results.
            out: Prediction to write to; by default a new one.

        Raises:
            M2HError: `out` has another size or lacks a task.
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
            if task == "depth" and self.calibration is not None:
                self.calibration.apply(target)
        return out


def postprocess_for(manifest: Manifest) -> Postprocess | SensorPostprocess:
    """Return the postprocess that converts the outputs of a manifest's engine to a prediction."""
    if manifest.sensor is not None:
        return SensorPostprocess(manifest.depth_calibration)
    return reference_postprocess(manifest)


def reference_postprocess(manifest: Manifest) -> Postprocess:
    """Return the postprocess of the network's own outputs, which a sensor graph includes."""
    full = manifest.label_resolution == "full"
    return Postprocess(manifest.depth_range, manifest.depth_calibration, full_labels=full)
