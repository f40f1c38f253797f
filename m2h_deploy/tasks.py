"""The four tasks of the network as one table: what it gives for each, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Values:
    """One array of a task."""

    name: str
    """Of the graph's output."""
    meaning: str
    quantity: Literal["m", "logit", "class", "unit vector", "probability"]

    @property
    def unit(self) -> str:
        """As manifests state it: 1 for numbers without a unit."""
        return self.quantity if self.quantity in ("m", "unit vector") else "1"


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str
    channels: int | None
    """Of the network's output, (N, channels, H, W) float32; None: one for each class."""
    output: Values
    """What the network gives."""
    activation: Literal["none", "argmax", "normalize", "sigmoid"]
    """What turns the output into the result."""
    result: Values
    """What a prediction holds and a sensor graph gives."""
    dtype: Literal["float32", "uint8"]
    """Of the result."""
    range: tuple[float, float] | None
    """Of the result; None: the manifest's `depth_range`."""
    components: tuple[int, ...] = ()
    """Of a pixel of the result, which is (H, W, *components)."""


_DEPTH = Values("depth", "metric depth along the optical axis", "m")
_LOGITS = Values("semantics", "class logits; the largest is the class", "logit")
_LABELS = Values("labels", "class index", "class")
_NORMALS = Values("normals", "surface normal, x left, y up, z towards the camera", "unit vector")
_BOUNDARY = Values("edges", "boundary logit; its sigmoid is the probability", "logit")
_PROBABILITY = Values("edges", "probability of a boundary", "probability")

#: By name, in the order of the forward pass and of the ONNX graph's outputs.
TABLE = {
    task.name: task
    for task in (
        Task("depth", 1, _DEPTH, "none", _DEPTH, "float32", None),
        Task("semantics", None, _LOGITS, "argmax", _LABELS, "uint8", (0, 254)),
        Task("normals", 3, _NORMALS, "normalize", _NORMALS, "float32", (-1, 1), (3,)),
        Task("edges", 1, _BOUNDARY, "sigmoid", _PROBABILITY, "float32", (0, 1)),
    )
}

TASKS = tuple(TABLE)

#: Names of the results in the same order, and the task of each: `labels` is the semantics'.
RESULTS = {task.result.name: task.name for task in TABLE.values()}


def task_of(output: str) -> str:
    """Return the task that an output of a plain or a sensor graph belongs to."""
    return RESULTS.get(output, output)
