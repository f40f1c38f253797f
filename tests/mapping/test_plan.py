"""Test the choice of frames for a map."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.mapping.plan import SEGMENTS, plan_map
from tests.commands import refused
from tests.mapping.conftest import FRAMES


@pytest.fixture
def sequence(room):
    return open_sequence(room)


def without_poses(sequence, *lost: int):
    moments = [replace(m, pose=None) if index in lost else m for index, m in enumerate(sequence.moments)]
    return replace(sequence, moments=tuple(moments))


def test_all_frames_with_a_pose_are_used_in_segments_of_consecutive_frames(sequence):
    plan = plan_map(sequence, [])
    assert (len(plan.posed), plan.segments, plan.problems) == (FRAMES, SEGMENTS, ())
    segments = [plan.segment(number) for number in range(FRAMES)]
    assert segments == sorted(segments)
    assert set(segments) == set(range(SEGMENTS))


def test_frames_without_a_pose_and_jumps_are_problems(sequence):
    nan = replace(sequence.moments[5], pose=np.full((4, 4), np.nan))
    lost = without_poses(sequence, 0, 1)
    lost = replace(lost, moments=(*lost.moments[:5], nan, *lost.moments[6:]), skipped=("2 files are left out",))
    plan = plan_map(lost, [7, 9])
    assert len(plan.posed) == FRAMES - 3
    assert plan.jumps == {sequence.moments[7].name, sequence.moments[9].name}
    assert plan.problems[0] == "2 files are left out"
    assert plan.problems[1].startswith(f"3 of {FRAMES} frames have no pose")
    assert f"jumps before 2 frames, first before {sequence.moments[7].name}" in plan.problems[2]


def test_the_limit_takes_the_first_frames(sequence):
    plan = plan_map(sequence, [2, 9], 4)
    assert plan.moments == sequence.moments[:4]
    assert plan.segments == 4
    assert plan.jumps == {sequence.moments[2].name}


def test_too_few_poses_are_one_line(sequence):
    assert "--poses FILE" in refused(plan_map, without_poses(sequence, *range(FRAMES)), [])
    assert "at least 2 frames" in refused(plan_map, without_poses(sequence, *range(1, FRAMES)), [])
    assert "at least 2 frames" in refused(plan_map, sequence, [], 1)
    twice = replace(sequence, moments=(sequence.moments[0], *sequence.moments))
    assert "two frames have the time stamp" in refused(plan_map, twice, [])


def test_a_camera_that_is_too_far_away_for_the_mesh_is_one_line(sequence):
    pose = sequence.moments[3].pose.copy()
    pose[1, 3] = -6e6
    far = (*sequence.moments[:3], replace(sequence.moments[3], pose=pose), *sequence.moments[4:])
    words = f"frame {sequence.moments[3].name} is 6e+03 km from the origin"
    assert words in refused(plan_map, replace(sequence, moments=far), [])
