"""Draw the frames on which an engine differs most from the reference."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.frame import Frame
from m2h_deploy.files.atomic import printable
from m2h_deploy.metrics.normals import angles_between
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.visualize.draw import Picture, depth_span, draw_depth, draw_edges, draw_normals, draw_semantics, fit

#: Width of a picture in pixels: half the width of a phone, and small enough for a page of forty.
_WIDTH = 360
#: Largest height: a strip of 16 x 16384 pixels would get 370,000 rows, more than JPEG supports.
_TALLEST = 1440

#: Unit of one frame's difference, and the difference that gets the brightest color.
_DIFFERENCES = {
    "depth": ("m on average", 0.5),
    "semantics": ("% of the pixels differ", 1.0),
    "normals": ("° on average", 30.0),
    "edges": ("probability on average", 0.5),
}


@dataclass(frozen=True)
class WorstFrame:
    """One frame and task, with its pictures as JPEG: input, reference, engine, difference."""

    task: str
    name: str
    difference: float
    unit: str
    scale: str
    """Meaning of the brightest color of the difference."""
    pictures: dict[str, bytes]


class WorstFrames:
    """Collect the pictures of the `keep` frames per task that differ most; other frames are not drawn."""

    def __init__(self, classes: Classes, keep: int) -> None:
        self._classes, self._keep = classes, keep
        self._heaps: dict[str, list[tuple[float, int, WorstFrame]]] = {}
        self._count = 0

    def add(self, task: str, frame: Frame, reference: Prediction, engine: Prediction, mean: float) -> None:
        """Add one frame of one task; `mean` is its `difference`."""
        if not self._keep:
            return
        heap = self._heaps.setdefault(task, [])
        if len(heap) == self._keep and mean <= heap[0][0]:
            return
        worst = draw_worst(task, frame, reference, engine, mean, self._classes)
        self._count += 1
        entry = (mean, -self._count, worst)
        if len(heap) < self._keep:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)

    def result(self) -> tuple[WorstFrame, ...]:
        """Return the frames task by task, the worst first."""
        return tuple(worst for heap in self._heaps.values() for _, _, worst in sorted(heap, reverse=True))


def draw_worst(
    task: str, frame: Frame, reference: Prediction, engine: Prediction, mean: float, classes: Classes
) -> WorstFrame:
    """Draw the pictures of one frame and task, whose `difference` is `mean`."""
    unit, brightest = _DIFFERENCES[task]
    error = _difference(task, getattr(reference, task), getattr(engine, task))
    drawn = _draw(task, getattr(reference, task), getattr(engine, task), classes)
    heat = cv2.applyColorMap((255 * np.clip(error / brightest, 0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)
    pictures = {
        "input": frame.image, "reference": drawn[0], "engine": drawn[1], "difference": np.asarray(heat, np.uint8),
    }  # fmt: skip
    scale = "bright: another class" if task == "semantics" else f"brightest: {brightest:g} {unit.split()[0]} or more"
    return WorstFrame(
        task, printable(frame.name), mean, unit, scale, {key: _jpeg(value) for key, value in pictures.items()}
    )


def difference(task: str, reference: Prediction, engine: Prediction) -> float:
    """Return the mean difference of two predictions of a task, in the unit that its pictures name."""
    error = _difference(task, getattr(reference, task), getattr(engine, task))
    return float(error.mean()) * (100 if task == "semantics" else 1)


def _difference(task: str, reference: NDArray[Any], engine: NDArray[Any]) -> NDArray[np.float64]:
    if task == "semantics":
        return (reference != engine).astype(np.float64)
    if task == "normals":
        return np.degrees(angles_between(reference.astype(np.float64), engine.astype(np.float64)))
    return np.abs(reference.astype(np.float64) - engine)


def _draw(task: str, reference: NDArray[Any], engine: NDArray[Any], classes: Classes) -> tuple[Picture, Picture]:
    """Draw both predictions with the same colors."""
    if task == "depth":
        near, far = depth_span(reference)
        return draw_depth(reference, near, far), draw_depth(engine, near, far)
    if task == "semantics":
        return draw_semantics(reference, classes), draw_semantics(engine, classes)
    draw = draw_normals if task == "normals" else draw_edges
    return draw(reference), draw(engine)


def _jpeg(picture: Picture) -> bytes:
    size = fit(picture, _TALLEST, _WIDTH)
    shrinks = picture.shape[1] >= size[0]
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)
    return bytes(cv2.imencode(".jpg", resized, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])
