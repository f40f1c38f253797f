"""Compare the four tasks: the paper's metric of the reference and of the engine, and the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.data.classes import IGNORE_LABEL, has_unknown
from m2h_deploy.data.frame import Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import DepthMetric, EdgesMetric, Metric, NormalsMetric, SemanticsMetric
from m2h_deploy.metrics.bootstrap import Interval, interval
from m2h_deploy.metrics.thinning import suppress_non_maxima
from m2h_deploy.parity.gates import GateResult, Gates, Rule, judge
from m2h_deploy.runtime.postprocess import Prediction

Against = Literal["labels", "reference"]
State = NDArray[np.float64]

#: If the reference replaces labels, its boundaries are the thinned edges above this share of the frame's strongest.
#: It is one of the metric's thresholds.
EDGE_SHARE = 0.5


@dataclass(frozen=True)
class TaskResult:
    """One task over all frames, at the images' own size. Values in `unit`: mIoU and odsF in percent."""

    task: str
    metric: str
    unit: str
    against: Against
    """Source of the ground truth: the data's labels, or the reference's own prediction."""
    derived: bool
    """Whether the labels were computed from other labels: not comparable with the paper's Table I."""
    reference: float | None
    """None if the reference is the ground truth: `engine` is then the agreement with it, not an accuracy."""
    engine: float
    worse_by: float
    """Difference of engine and reference in `unit`; positive is worse, as in the gates."""
    interval: Interval
    """95 % interval of `worse_by`."""
    reference_figures: dict[str, float] | None
    engine_figures: dict[str, float]
    figure_units: dict[str, str]
    """Unit of each of the figures."""


@dataclass(frozen=True)
class _Task:
    """The headline figure of a task and its gate."""

    metric: str
    unit: str
    gate: str
    gate_unit: str
    sign: int
    """+1: a larger figure is worse."""
    words: str


_TASKS = {
    "depth": _Task("RMSE", "m", "rmse_increase", "%", 1, "RMSE increase"),
    "semantics": _Task("mIoU", "%", "miou_drop", "points", -1, "mIoU drop"),
    "normals": _Task("mErr", "°", "merr_increase", "°", 1, "mErr increase"),
    "edges": _Task("odsF", "%", "odsf_drop", "points", -1, "odsF drop"),
}


class TaskComparison:
    """Add up one task over frames: the metric's state of reference and engine for each frame."""

    def __init__(self, task: str, against: Against, classes: Classes, *, derived: bool = False) -> None:
        self.task, self.against, self.derived = task, against, derived
        self._unknown = has_unknown(classes)
        self._metric = _make_metric(task, against, classes, unknown=self._unknown)
        self._reference: list[State] = []
        self._engine: list[State] = []
        self._scale: list[State] = []

    def states(
        self, frame: Frame, reference: Prediction, engine: Prediction, known: State | None = None
    ) -> tuple[State, ...]:
        """Return the frame's metric states: of the reference, of the engine, and for depth of a prediction of zeros.

        `known` is the reference's state, if an earlier call gave it.

        Raises:
            M2HError: The frame's labels do not fit its image; names the frame.
        """
        reference_map, engine_map = getattr(reference, self.task), getattr(engine, self.task)
        if self.task == "edges" and self.against == "reference":
            reference_map, engine_map, target = _edge_agreement(reference_map, engine_map)
        else:
            target = self._target(frame, reference_map)
        try:
            state = self._metric.frame_state(reference_map, target) if known is None else known
            # Edge matching is slow, and a good engine often gives exactly the same array.
            same = np.array_equal(reference_map, engine_map)
            states = [state, state if same else self._metric.frame_state(engine_map, target)]
            if self.task == "depth":
                states.append(self._metric.frame_state(np.zeros_like(target), target))
        except M2HError as error:
            raise M2HError(f"{frame.name}: {error}") from None
        return tuple(states)

    def add(self, states: tuple[State, ...]) -> None:
        """Add the states of one frame, as returned by `states`."""
        reference, engine, *scale = states
        self._reference.append(reference)
        self._engine.append(engine)
        self._scale += scale

    def _target(self, frame: Frame, reference: NDArray[Any]) -> NDArray[Any]:
        if self.against == "labels":
            target = getattr(frame, self.task)
            if target is None:
                raise M2HError(f"{frame.name} has no {self.task} labels, the first frame has: check the data")
            return target
        if self.task == "semantics" and self._unknown:
            return np.where(reference == 0, IGNORE_LABEL, reference - 1).astype(np.uint8)
        return reference

    def result(self, weights: NDArray[np.float64], gates: Gates) -> tuple[TaskResult, list[GateResult]]:
        """Return the figures with their interval, and the task's gate if it is set.

        `weights` are the bootstrap's draws, float64 (resamples, frames).
        """
        spec = _TASKS[self.task]
        reference_states, engine_states = np.array(self._reference), np.array(self._engine)
        reference, engine = self._figures(reference_states, weights), self._figures(engine_states, weights)
        worse = spec.sign * (engine - reference) + 0.0  # no negative zeros
        frames = len(reference_states)
        labeled = self.against == "labels"
        result = TaskResult(
            task=self.task,
            metric=spec.metric,
            unit=spec.unit,
            against=self.against,
            derived=self.derived,
            reference=float(reference[0]) if labeled else None,
            engine=float(engine[0]),
            worse_by=float(worse[0]),
            interval=interval(float(worse[0]), worse[1:], frames),
            reference_figures=self._metric.compute_from(reference_states.sum(axis=0)) if labeled else None,
            engine_figures=self._metric.compute_from(engine_states.sum(axis=0)),
            figure_units=dict(self._metric.units),
        )
        limit = getattr(gates, spec.gate)
        if limit is None:
            return result, []
        if self.task == "depth":
            base = reference if labeled else self._figures(np.array(self._scale), weights)
            worse = 100 * np.divide(worse, base, out=np.full_like(worse, np.nan), where=base > 0)
        rule = Rule(f"{self.task}.{spec.gate}", self.task, f"{self.task} {spec.words}", spec.gate_unit)
        return result, [judge(rule, limit, float(worse[0]), interval(float(worse[0]), worse[1:], frames), frames)]

    def _figures(self, states: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the headline figure of all frames, then of each resample: float64 (1 + resamples,)."""
        headline = _HEADLINES[self.task]
        totals = np.concatenate([states.sum(axis=0)[None], weights @ states])
        return np.array([headline(self._metric, total) for total in totals])


def _make_metric(task: str, against: Against, classes: Classes, *, unknown: bool) -> Metric:
    if task == "depth":
        return DepthMetric()
    if task == "normals":
        return NormalsMetric()
    if task == "edges":
        return EdgesMetric(suppress=against == "labels")  # `_edge_agreement` has suppressed the maps already
    return SemanticsMetric(len(classes.names), unknown=unknown)


def _edge_agreement(
    reference: NDArray[np.float32], engine: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Scale both maps by the reference's strongest edge, suppress non-maxima, and take the truth from the reference.

    The truth is the reference above EDGE_SHARE.

    At the threshold EDGE_SHARE the metric selects exactly these pixels of the reference, so the reference has an odsF
    of 100 % whatever its strength, and so has an engine with the same values.
    """
    strongest = float(suppress_non_maxima(reference).max()) or 1.0
    reference, engine = (
        suppress_non_maxima(np.minimum(edges / np.float32(strongest), np.float32(1))) for edges in (reference, engine)
    )
    return reference, engine, reference > np.float32(EDGE_SHARE)


def _miou(metric: Metric, state: State) -> float:
    """Return the mean IoU over the classes that occur in the targets, in percent.

    Reference and engine thus use the same set of classes. On data with all classes, such as NYUv2's 654 test frames, it
    is the published mIoU. With fewer frames the published one still divides by the number of classes, which would hide
    a loss.
    """
    assert isinstance(metric, SemanticsMetric)
    occurs = state.reshape(3, -1)[2] > 0
    return float(100 * metric.per_class_iou(state)[occurs].mean()) if occurs.any() else float("nan")


def _odsf(metric: Metric, state: State) -> float:
    """Return odsF in percent, without the other figures, which the resamples do not need."""
    assert isinstance(metric, EdgesMetric)
    precision, recall = metric.precision_recall(state)
    if not recall.any():
        return 100 * metric.compute_from(state)["odsF"]  # distinguishes no match from no boundary
    return float(100 * (2 * precision * recall / np.maximum(precision + recall, 1e-300)).max())


_HEADLINES: dict[str, Callable[[Metric, State], float]] = {
    "depth": lambda metric, state: metric.compute_from(state)["rmse"],
    "semantics": _miou,
    "normals": lambda metric, state: metric.compute_from(state)["mean"],
    "edges": _odsf,
}
