"""Test the fusion of one variant: scale, jumps, frames that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.fuse import Fusion, TrueLabels, VolumeSettings
from m2h_deploy.mapping.judge import Truth, judge_variant
from m2h_deploy.mapping.plan import plan_map
from m2h_deploy.mapping.sums import Estimate
from m2h_deploy.temporal import FilterSettings, TemporalFilter
from tests.commands import refused

pytestmark = pytest.mark.usefixtures("coarse")

LIMIT = 10


@dataclass(frozen=True)
class Scaled:
    """True depth times a factor; named frames fail."""

    sequence: Sequence
    factor: float
    broken: tuple[str, ...] = ()
    classes: int = 40

    def has(self, moment) -> bool:
        return True

    def read(self, moment) -> Estimate:
        if moment.name in self.broken:
            raise M2HError(f"{moment.name} is damaged")
        frame = self.sequence.read(moment)
        return Estimate(frame.depth * np.float32(self.factor), frame.semantics)


@pytest.fixture(scope="module")
def sequence(room):
    return open_sequence(room)


@pytest.fixture(scope="module")
def plan(sequence):
    return plan_map(sequence, [], LIMIT)


def fuse(plan, source, filtering: FilterSettings | None = None, *, scale: bool = False):
    return Fusion(plan, source, VolumeSettings(), judge_labels=True).run(filtering, lambda *_: None, scale=scale)


def test_depth_that_is_wrong_by_a_factor_is_right_after_division_by_it(plan):
    fused = fuse(plan, Scaled(plan.sequence, 1.2), scale=True)
    assert fused.factor == pytest.approx(1.2, rel=1e-3)
    truth = Truth(plan, VolumeSettings(), lambda *_: None)
    maps = judge_variant(fused, truth, judge_labels=True).maps
    assert maps["scale"].scale == fused.factor
    assert maps["scale"].figures["mean"] < 0.02
    assert maps["none"].figures["mean"] > 0.05
    assert maps["scale"].figures["label_accuracy"] > 0.85


def test_without_a_scaled_map_asked_for_there_is_only_the_factor(plan):
    fused = fuse(plan, Scaled(plan.sequence, 0.5))
    assert (fused.scaled, fused.factor) == (None, pytest.approx(0.5, rel=1e-3))
    assert fused.trajectory.shape == (LIMIT, 3)


def test_a_jump_resets_the_filter_and_separates_pairs_of_frames(sequence, plan, monkeypatch):
    resets = []
    real = TemporalFilter.reset
    monkeypatch.setattr(TemporalFilter, "reset", lambda self: (resets.append(1), real(self))[1])
    smooth = fuse(plan, TrueLabels(sequence), FilterSettings())
    before = len(resets)
    jumping = fuse(plan_map(sequence, [4, 7], LIMIT), TrueLabels(sequence), FilterSettings())
    assert len(resets) >= before + 2
    assert smooth.sums["temporal"][:, 0].sum() == LIMIT - 1
    assert jumping.sums["temporal"][:, 0].sum() == LIMIT - 3


def test_frames_that_cannot_be_read_are_named_and_separate_pairs(plan):
    lost = plan.posed[3].name
    fused = fuse(plan, Scaled(plan.sequence, 1.0, broken=(lost,)))
    assert fused.unread == {lost: f"{lost} is damaged"}
    assert fused.frames == LIMIT - 1
    assert fused.sums["temporal"][:, 0].sum() == LIMIT - 3


def test_no_frame_at_all_is_one_line(plan):
    names = tuple(moment.name for moment in plan.posed)
    assert f"{names[0]} is damaged" in refused(fuse, plan, Scaled(plan.sequence, 1.0, broken=names))


def test_labels_do_not_change_the_shape_and_are_optional(plan):
    @dataclass(frozen=True)
    class Unlabeled(Scaled):
        def read(self, moment) -> Estimate:
            return replace(super().read(moment), labels=None)

    bare, labeled = fuse(plan, Unlabeled(plan.sequence, 1.0)), fuse(plan, Scaled(plan.sequence, 1.0))
    assert (bare.mesh.vertices == labeled.mesh.vertices).all()
    assert set(bare.mesh.labels.tolist()) == {255}
