"""Network outputs to what a robot uses, at the image's own size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """One frame's answer, H x W as the image. A task that the engine does not have is None."""

    depth: NDArray[np.float32] | None
    """(H, W) metres."""
    semantics: NDArray[np.uint8] | None
    """(H, W) class index."""
    normals: NDArray[np.float32] | None
    """(H, W, 3) unit vectors."""
    edges: NDArray[np.float32] | None
    """(H, W) probability 0..1."""
    timings: dict[str, float] = field(default_factory=dict)
    """Milliseconds: preprocess, inference, postprocess."""


class Postprocess:
    """Turns one frame's outputs (batch dimension removed) into arrays of the image's size.

    Labels are decided at the network's size and repeated to the image's, as the published node does; the others are
    resized bilinearly, then depth is clamped and normals are normalised again.
    """

    def __init__(self, depth_range: tuple[float, float]) -> None:
        self.depth_range = depth_range
        self._best = np.empty(0, np.float32)
        self._better = np.empty(0, bool)
        self._labels = np.empty(0, np.uint8)

    def __call__(self, outputs: Mapping[str, NDArray[np.float32]], height: int, width: int) -> Prediction:
        """depth (1, h, w) metres, semantics (C, h, w) logits, normals (3, h, w), edges (1, h, w) logits."""
        size = (width, height)
        return Prediction(
            depth=self._depth(outputs["depth"], size) if "depth" in outputs else None,
            semantics=self._semantics(outputs["semantics"], size) if "semantics" in outputs else None,
            normals=self._normals(outputs["normals"], size) if "normals" in outputs else None,
            edges=self._edges(outputs["edges"], size) if "edges" in outputs else None,
        )

    def _depth(self, depth: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        resized = _resize(depth[0], size)
        return np.clip(resized, *self.depth_range, out=resized)

    def _semantics(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.uint8]:
        labels = self._argmax(logits)
        return cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8, copy=False)

    def _argmax(self, logits: NDArray[np.float32]) -> NDArray[np.uint8]:
        """argmax over the first axis. Pass by pass over whole planes: numpy's own walks them pixel by pixel."""
        shape = logits.shape[1:]
        if self._best.shape != shape:
            self._best, self._better = np.empty(shape, np.float32), np.empty(shape, bool)
            self._labels = np.empty(shape, np.uint8)
        np.copyto(self._best, logits[0])
        self._labels.fill(0)
        for index in range(1, len(logits)):
            np.greater(logits[index], self._best, out=self._better)
            np.copyto(self._best, logits[index], where=self._better)
            self._labels[self._better] = index
        return self._labels

    def _normals(self, normals: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        resized = _resize(np.ascontiguousarray(normals.transpose(1, 2, 0)), size)
        length = np.sqrt(np.einsum("hwc,hwc->hw", resized, resized))
        # Opposite normals can cancel out between two pixels; a vector of no length stays one.
        resized /= np.maximum(length, 1e-12)[:, :, None]
        return resized

    def _edges(self, logits: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
        probability = np.negative(np.clip(logits[0], -80, 80))
        np.exp(probability, out=probability)
        probability += 1
        np.reciprocal(probability, out=probability)
        return _resize(probability, size)


def _resize(array: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Bilinear to (width, height), always a fresh array: the input belongs to the engine."""
    if (array.shape[1], array.shape[0]) == size:
        return array.copy()
    return np.asarray(cv2.resize(array, size, interpolation=cv2.INTER_LINEAR), np.float32)
