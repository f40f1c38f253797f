"""Judge many versions of one network on the same frames, with the reference's results computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.classes import check_classes
from m2h_deploy.data.frame import Dataset, Frame
from m2h_deploy.metrics.bootstrap import draws
from m2h_deploy.numerics import span_of
from m2h_deploy.parity.gates import Gates
from m2h_deploy.parity.tasks import Against, State, TaskComparison
from m2h_deploy.runtime.postprocess import Postprocess, Prediction
from m2h_deploy.runtime.preprocess import Preprocess

Outputs = dict[str, NDArray[np.float32]]
Network = Callable[[NDArray[np.float32]], Outputs]
"""Function of an image, float32 (1, 3, H, W), that returns the outputs by task, (1, C, H, W) each."""

#: Loss of a network that gives NaN or infinity: a finite number, which JSON can hold.
NOT_FINITE = 1e9

#: Resamples of an interval that nothing reads: only the figures count here.
_RESAMPLES = 2


@dataclass(frozen=True)
class Interface:
    """What a network takes and gives, as far as a comparison depends on it."""

    preprocess: Preprocess
    classes: Classes
    depth_range: tuple[float, float]
    tasks: tuple[str, ...]
    full_labels: bool = False
    """Whether the logits are resized to the image before the argmax."""


class Judge:
    """A reference's results on some frames, and the gates that other versions of the network are held against."""

    def __init__(self, interface: Interface, data: Dataset, indices: Sequence[int], reference: Network, gates: Gates):
        """Run `reference` on the frames of `data` at `indices`.

        Raises:
            M2HError: The classes of the data are not the network's, or a frame's labels do not fit its image.
        """
        self._interface, self._gates = interface, gates
        self._postprocess = Postprocess(interface.depth_range, full_labels=interface.full_labels)
        self._frames = [data[index] for index in indices]
        first = self._frames[0]
        if first.semantics is not None and "semantics" in interface.tasks:
            check_classes(data.class_names, interface.classes)
        self._against: dict[str, Against] = {
            task: "reference" if getattr(first, task) is None else "labels" for task in interface.tasks
        }
        self._images = [interface.preprocess(frame.image).copy() for frame in self._frames]
        self._outputs = [{task: reference(image)[task] for task in interface.tasks} for image in self._images]
        pairs = zip(self._outputs, self._frames, strict=True)
        self._predictions = [self._prediction(outputs, frame) for outputs, frame in pairs]
        self._states: dict[tuple[str, int], State] = {}
        self._spans = {task: _span([outputs[task] for outputs in self._outputs]) for task in interface.tasks}

    def losses(self, network: Network) -> dict[str, float]:
        """Return how much of each gate's limit a network uses up: 1 is the limit, below 0 it is better.

        By gate: `depth.rmse_increase`, ..., and `depth.psnr`, ... as power of the error: those of single blocks add up.
        A network that gives NaN or infinity fails by `NOT_FINITE`.
        """
        results = [network(image) for image in self._images]
        finite = all(np.isfinite(values[task]).all() for values in results for task in self._interface.tasks)
        if not finite:
            return {"finite": NOT_FINITE}
        losses = {}
        weights = draws(len(self._frames), _RESAMPLES)
        for task, against in self._against.items():
            comparison = TaskComparison(task, against, self._interface.classes)
            for index, (frame, outputs) in enumerate(zip(self._frames, results, strict=True)):
                known = self._states.get((task, index))
                engine = self._prediction({task: outputs[task]}, frame)
                states = comparison.states(frame, self._predictions[index], engine, known)
                self._states[task, index] = states[0]
                comparison.add(states)
            for gate in comparison.result(weights, self._gates)[1]:
                assert gate.value is not None and gate.limit is not None
                losses[gate.name] = 0.0 if np.isnan(gate.value) else gate.value / max(gate.limit, 1e-9)
        return losses | self._noise(results)

    def _noise(self, results: Sequence[Outputs]) -> dict[str, float]:
        if self._gates.psnr is None:
            return {}
        noise = {}
        for task, span in self._spans.items():
            pairs = zip(self._outputs, results, strict=True)
            square = np.mean([np.mean((a[task].astype(np.float64) - b[task]) ** 2) for a, b in pairs])
            noise[f"{task}.psnr"] = float(square) / span**2 * 10 ** (self._gates.psnr / 10)
        return noise

    def _prediction(self, outputs: Outputs, frame: Frame) -> Prediction:
        single = {task: np.asarray(values[0], np.float32) for task, values in outputs.items()}
        return self._postprocess(single, frame.height, frame.width)


def _span(values: Sequence[NDArray[np.float32]]) -> float:
    least, most = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    return span_of(least, most, float(np.mean([np.mean(np.square(v, dtype=np.float64)) for v in values])))
