"""Test that the errors of a map are those that geometry predicts from errors of depth and poses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from m2h_deploy.mapping.errors import judge_map
from m2h_deploy.mapping.surface import TrueSurface
from m2h_deploy.mapping.volume import Volume
from tests.commands import run_here
from tests.scenes import a_room, surface_of, views_of

pytestmark = pytest.mark.usefixtures("open3d")


@pytest.fixture(scope="module")
def views():
    room = a_room(1)
    truth = TrueSurface(surface_of(room), spacing=0.06)
    found = list(views_of(room, 30, (60, 80), 1))
    for view in found:
        truth.observe(view.depth, view.intrinsics, view.pose)
    return truth, found


def errors_of(truth, found, *, poses=None, factor=1.0):
    volume = Volume(1)
    for number, (depth, _, intrinsics, pose) in enumerate(found):
        volume.integrate(depth * np.float32(factor), None, intrinsics, pose if poses is None else poses[number])
    return judge_map(volume.mesh(), truth, spacing=0.04)


def test_noise_of_the_poses_raises_the_mean_error(views):
    truth, found = views
    moves = np.random.default_rng(0).standard_normal((len(found), 3))
    means = []
    for noise in (0.0, 0.01, 0.02, 0.04, 0.08):
        poses = [view.pose.copy() for view in found]
        for pose, move in zip(poses, moves, strict=True):
            pose[:3, 3] += noise * move
        means.append(errors_of(truth, found, poses=poses).mean)
    assert means == sorted(means)
    assert means[-1] > 4 * means[0]


def test_depth_that_is_too_large_moves_the_walls_by_what_geometry_predicts(views):
    """A camera that stands still sees a larger copy of the room, whose scale from the camera is that of its depth."""
    truth, found = views
    depth, _, intrinsics, pose = found[0]
    still = [(depth, None, intrinsics, pose)] * 3
    truth = TrueSurface(truth.mesh, spacing=0.06)
    for view in still:
        truth.observe(view[0], view[2], view[3])
    exact, scaled = errors_of(truth, still), errors_of(truth, still, factor=1.05)
    seen = truth.points[truth.observed]
    # Points move along their rays; the distance to a wall is the part of that along its normal.
    predicted = truth.distances(pose[:3, 3] + 1.05 * (seen - pose[:3, 3])).mean()
    assert predicted > 10 * exact.mean
    assert scaled.mean == pytest.approx(predicted, rel=0.12)
    assert errors_of(truth, still, factor=1.05 / 1.05).mean == exact.mean


@pytest.mark.slow
@pytest.mark.parametrize("seed", (301, 302, 303))
def test_map_of_the_true_depth_of_a_walk_is_the_surface(seed, tmp_path):
    walk, out = tmp_path / "walk", tmp_path / "map"
    assert run_here("rooms", walk, "--sequence", "--frames", 200, "--rate", 10, "--seed", seed).exception is None
    command = ("map", walk, "--truth", "--voxel", 0.03, "--truncation", 0.09, "-o", out, "--json")
    row = json.loads(run_here(*command).stdout)["rows"][0]
    figures = next(score["figures"] for score in row["maps"] if score["alignment"] == "none")
    assert figures["mean"] < 0.015
    assert figures["fscore"] > 0.99
