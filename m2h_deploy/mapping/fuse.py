"""Fuse one variant: predictions of a bundle, filtered or not, or the true labels; then judge the map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.plan import Plan
from m2h_deploy.mapping.predictions import Predictions
from m2h_deploy.mapping.sums import Estimate, RatioHistogram, Reference, SegmentSums, to_labels
from m2h_deploy.mapping.volume import Volume
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal import FilterSettings, TemporalFilter

#: Called with the numbers of finished frames and of all frames.
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class VolumeSettings:
    """How depth and labels are fused; see `Volume`."""

    voxel: float = 0.05
    truncation: float = 0.15
    depth_range: tuple[float, float] = (0.1, 5.0)

    def volume(self, classes: int) -> Volume:
        """Make an empty volume."""
        return Volume(max(classes, 1), voxel=self.voxel, truncation=self.truncation, depth_range=self.depth_range)


class Source(Protocol):
    """What is fused."""

    @property
    def classes(self) -> int:
        """Number of classes, without `unknown`."""
        ...

    def has(self, moment: Moment) -> bool:
        """Return whether there may be an estimate of a frame."""
        ...

    def read(self, moment: Moment) -> Estimate | None:
        """Return the estimate of a frame; None if there is none. Raises M2HError if it cannot be read."""
        ...


@dataclass(frozen=True)
class Predicted:
    """The predictions of a bundle."""

    predictions: Predictions
    classes: int

    def has(self, moment: Moment) -> bool:
        """Return whether the engine gave a result for a frame."""
        return moment in self.predictions

    def read(self, moment: Moment) -> Estimate:
        """Read the prediction of a frame."""
        depth, stored = self.predictions.read(moment)
        return Estimate(depth, to_labels(stored))


@dataclass(frozen=True)
class TrueLabels:
    """True depth and labels of the sequence: the floor of all figures."""

    sequence: Sequence

    @property
    def classes(self) -> int:
        """Number of classes of the sequence."""
        return len(self.sequence.class_names)

    def has(self, moment: Moment) -> bool:
        """Return whether the sequence has depth."""
        return "depth" in self.sequence.label_readers

    def read(self, moment: Moment) -> Estimate | None:
        """Read the true depth and labels of a frame."""
        depth = self.sequence.read_label("depth", moment)
        return None if depth is None else Estimate(depth, self.sequence.read_label("semantics", moment))


@dataclass(frozen=True, eq=False)
class Fused:
    """A fused variant."""

    mesh: SemanticMesh
    scaled: SemanticMesh | None
    """The map from depth that is divided by `factor`; None without true depth."""
    factor: float | None
    """Median of predicted by true depth over the sequence."""
    sums: dict[str, NDArray[np.float64]]
    """By metric, (segments, size)."""
    frames: int
    """Number of fused frames."""
    unread: dict[str, str]
    """Frames that could not be read, by name, with the reason."""
    resets: dict[str, int]
    """How often the temporal filter dropped the past, by reason; see `TemporalFilter`."""
    seconds: dict[str, float]
    """Mean time for a frame of the filter and of the fusion."""
    trajectory: NDArray[np.float64]
    """Positions of the camera, (frames, 3)."""


@dataclass(frozen=True, eq=False)
class _Step:
    segment: int
    truth: Reference
    pose: Pose
    estimate: Estimate
    follows: bool
    """Whether the frame before it in the sequence was a step, without a jump between them."""
    filtering: float
    """Seconds."""


class Fusion:
    """Fuses one variant, in one pass over the frames, and a second one for the scaled map."""

    def __init__(
        self,
        plan: Plan,
        source: Source,
        settings: VolumeSettings,
        *,
        judge_labels: bool,
        table: NDArray[np.uint8] | None = None,
    ) -> None:
        """Prepare.

        Args:
            plan: The frames.
            source: Their depth and labels.
            settings: How they are fused.
            judge_labels: Whether the labels of source and sequence have the same classes, after `table`.
            table: The source's label of each label of the sequence, uint8 (256,); None if they are the same.
        """
        self._table = table
        self.plan, self.source, self.settings, self.judge_labels = plan, source, settings, judge_labels
        self.unread: dict[str, str] = {}
        self.resets: dict[str, int] = {}

    def run(self, filtering: FilterSettings | None, advance: Advance, *, scale: bool) -> Fused:
        """Fuse the frames.

        Args:
            filtering: How the predictions are filtered; None: unfiltered.
            advance: Called after each frame; with `scale`, the frames are counted twice.
            scale: Also fuse depth that is divided by its median ratio to the true depth.

        Raises:
            M2HError: No frame can be read, or a frame's labels do not fit.
        """
        volume = self.settings.volume(self.source.classes)
        sums = SegmentSums(self.plan, self.source.classes, judge_labels=self.judge_labels)
        ratios = RatioHistogram()
        fuse_seconds = filter_seconds = 0.0
        path = []
        for step in self._steps(filtering, advance, judged=True):
            sums.add(step.segment, step.truth, step.pose, step.estimate, follows=step.follows)
            if step.truth.depth is not None:
                ratios.add(step.estimate.depth, step.truth.depth)
            fuse_seconds += self._integrate(volume, step, 1.0)
            filter_seconds += step.filtering
            path.append(step.pose[:3, 3])
        if not path:
            why = next(iter(self.unread.values()), "they have no result")
            raise M2HError(f"{self.plan.sequence.folder}: none of the frames with a pose can be fused: {why}")
        factor = ratios.median
        scaled = None
        if scale and factor is not None:
            second = self.settings.volume(self.source.classes)
            for step in self._steps(filtering, advance, judged=False):
                self._integrate(second, step, factor)
            scaled = second.mesh()
        seconds = {"fuse": fuse_seconds / len(path)}
        if filtering is not None:
            seconds["filter"] = filter_seconds / len(path)
        return Fused(
            volume.mesh(), scaled, factor, sums.sums, len(path), self.unread, self.resets, seconds, np.array(path)
        )

    def _steps(self, filtering: FilterSettings | None, advance: Advance, *, judged: bool) -> Iterator[_Step]:
        """Yield the frames that can be read and have an estimate, filtered; with the truth if they are `judged`."""
        temporal = None if filtering is None else TemporalFilter(self.plan.sequence.intrinsics, filtering)
        places = {moment.name: index for index, moment in enumerate(self.plan.moments)}
        last = -2
        for number, moment in enumerate(self.plan.posed):
            found = self._read(moment, judged=judged)
            if moment.name in self.plan.jumps:
                last = -2
                if temporal is not None:
                    temporal.reset()
            if found is not None:
                truth, estimate = found
                place = places[moment.name]
                assert moment.pose is not None
                start = perf_counter()
                if temporal is not None:
                    prediction = Prediction(estimate.depth, estimate.labels, None, None)
                    better = temporal(prediction, moment.pose, moment.timestamp)
                    assert better.depth is not None
                    estimate = Estimate(better.depth, better.semantics)
                spent = perf_counter() - start
                yield _Step(self.plan.segment(number), truth, moment.pose, estimate, place == last + 1, spent)
                last = place
            advance(number + 1, len(self.plan.posed))
        if temporal is not None:
            self.resets = temporal.resets

    def _read(self, moment: Moment, *, judged: bool) -> tuple[Reference, Estimate] | None:
        """Read the truth and the estimate of a frame; None, and the reason in `unread`, if that fails."""
        if moment.name in self.unread or not self.source.has(moment):
            return None
        sequence = self.plan.sequence
        truth = Reference(None, None)
        try:
            if judged:
                labels = sequence.read_label("semantics", moment) if self.judge_labels else None
                if labels is not None and self._table is not None:
                    labels = self._table[labels]
                truth = Reference(sequence.read_label("depth", moment), labels)
            estimate = self.source.read(moment)
        except M2HError as error:
            self.unread[moment.name] = str(error)
            return None
        return None if estimate is None else (truth, estimate)

    def _integrate(self, volume: Volume, step: _Step, factor: float) -> float:
        """Add a frame whose depth is divided by `factor`; return the seconds that it took."""
        depth = step.estimate.depth if factor == 1.0 else (step.estimate.depth / np.float32(factor)).astype(np.float32)
        start = perf_counter()
        volume.integrate(depth, step.estimate.labels, self.plan.sequence.intrinsics, step.pose)
        return perf_counter() - start
