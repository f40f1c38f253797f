"""Test depth from the motion of a camera whose poses are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.calibration.motion import samples_of_motion, triangulate
from m2h_deploy.data.rooms.walk import RoomWalk
from m2h_deploy.data.sequence_writer import write_sequence
from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.errors import M2HError


@pytest.fixture(scope="module")
def walk() -> RoomWalk:
    return RoomWalk(36, 5, rate=10, height=120, width=160)


@pytest.fixture(scope="module")
def sequence(walk, tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk") / "walk"
    write_sequence(folder, walk)
    return open_sequence(folder)


def test_tracked_points_lie_on_the_true_surfaces(walk):
    errors = []
    for index in (4, 12, 20):
        first, second = walk[index], walk[index + 8]
        motion = np.linalg.inv(second.pose) @ first.pose
        places, depth = triangulate(first.image, second.image, motion, walk.intrinsics)
        column, row = np.rint(places).astype(int).T
        errors.append(np.log(depth / first.depth[row, column]))
    errors = np.concatenate(errors)
    assert len(errors) > 60
    assert abs(np.median(errors)) < 0.01 and np.median(np.abs(errors)) < 0.04


def test_images_without_corners_give_nothing():
    flat = np.full((60, 80, 3), 90, np.uint8)
    motion = np.eye(4)
    motion[0, 3] = 0.2
    places, depth = triangulate(flat, flat, motion, RoomWalk(1, height=60, width=80).intrinsics)
    assert len(places) == len(depth) == 0


def test_the_samples_are_those_of_the_true_scale(sequence, trained_bundle):
    with Runtime.load(trained_bundle) as runtime:
        found = samples_of_motion(runtime, sequence, 12)
        ratios = []
        for moment in sequence.moments[::6]:
            frame = sequence.read(moment)
            ratios.append(np.median(frame.depth / runtime(frame.image).depth))
    assert found.units >= 3 and len(found.measured) > 200
    assert np.median(found.measured / found.predicted) == pytest.approx(np.median(ratios), rel=0.06)


def test_poses_in_millimeters_and_a_camera_that_stands_still_are_refused(sequence, tiny_bundle):
    def moved(change):
        return replace(sequence, moments=tuple(replace(m, pose=change(m.pose)) for m in sequence.moments))

    def in_millimeters(pose):
        return np.block([[pose[:3, :3], pose[:3, 3:] * 1000], [pose[3:]]])

    with Runtime.load(tiny_bundle) as runtime:
        for wrong in (moved(in_millimeters), moved(lambda pose: np.eye(4)), moved(lambda pose: None)):
            with pytest.raises(M2HError, match=r"no two frames have poses 0\.04 to 0\.4 m apart"):
                samples_of_motion(runtime, wrong, 12)
