"""The four tasks of the network as one table: the outputs and the results of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Values:
    """One array of a task."""

    name: str
    """Name of the graph's output."""
    meaning: str
    quantity: Literal["m", "logit", "class", "unit vector", "probability"]

    @property
    def unit(self) -> str:
        """The unit in manifests: 1 for numbers without a unit."""
        return self.quantity if self.quantity in ("m", "unit vector") else "1"


@dataclass(frozen=True)
class Task:
    """One task: its network output, and how the result is made from it."""

    name: str
    channels: int | None
    """Channels of the network's output, (N, channels, H, W) float32; None: one per class."""
    output: Values
    """Output of the network."""
    activation: Literal["none", "argmax", "normalize", "sigmoid"]
    """Operation that converts the output to the result."""
    result: Values
    """Result in a prediction, and output of a sensor graph."""
    dtype: Literal["float32", "uint8"]
    """Type of the result."""
    range: tuple[float, float] | None
    """Range of the result; None: the manifest's `depth_range`."""
    components: tuple[int, ...] = ()
    """Components per pixel of the result, which is (H, W, *components)."""


_DEPTH = Values("depth", "metric depth along the optical axis", "m")
_LOGITS = Values("semantics", "class logits; the largest is the class", "logit")
_LABELS = Values("labels", "class index", "class")
_NORMALS = Values("normals", "surface normal, x left, y up, z towards the camera", "unit vector")
_BOUNDARY = Values("edges", "boundary logit; its sigmoid is the probability", "logit")
_PROBABILITY = Values("edges", "probability of a boundary", "probability")

#: The tasks by name, in the order of the forward pass and of the ONNX graph's outputs.
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

#: Task by name of the result, in the same order; `labels` is the result of semantics.
RESULTS = {task.result.name: task.name for task in TABLE.values()}


def task_of(output: str) -> str:
    """Return the task that an output of a plain or a sensor graph belongs to."""
    return RESULTS.get(output, output)
