from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.temporal.warp import Warp, close_cracks, motion_between

CAMERA = Intrinsics(50.0, 50.0, 31.5, 23.5)


def shift(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> np.ndarray:
    motion = np.eye(4)
    motion[:3, 3] = x, y, z
    return motion


@pytest.fixture
def warp() -> Warp:
    return Warp(CAMERA, 48, 64)


def test_no_motion_changes_nothing(warp: Warp) -> None:
    depth = np.random.default_rng(0).uniform(0.5, 9, (48, 64)).astype(np.float32)
    depth[3, 4] = 0
    warped = warp.forward(depth, np.eye(4))
    np.testing.assert_allclose(warped.depth, depth, rtol=1e-6)
    known = depth > 0
    assert (warped.source[known] == np.arange(depth.size).reshape(depth.shape)[known]).all()


def test_a_wall_moves_by_the_disparity(warp: Warp) -> None:
    # 0.2 m to the right at 2 m: 50 * 0.2 / 2 = 5 pixels to the left.
    warped = warp.forward(np.full((48, 64), 2.0, np.float32), shift(x=-0.2))
    assert (warped.depth[:, :59] == 2.0).all()
    assert (warped.depth[:, 59:] == 0).all()
    assert (warped.source[0, :59] == np.arange(5, 64)).all()


def test_the_nearest_point_wins(warp: Warp) -> None:
    depth = np.full((48, 64), 4.0, np.float32)
    depth[:, 20] = 2.0  # moves by 10 pixels, the wall behind it by 5
    warped = warp.forward(depth, shift(x=0.4))
    assert (warped.depth[:, 30] == 2.0).all()
    assert (warped.source[:, 30] % 64 == 20).all()
    assert (warped.depth[:, 31] == 4.0).all()
    assert (warped.depth[:, 25] == 0).all()  # what the post hid before


def test_points_behind_the_camera_vanish(warp: Warp) -> None:
    assert (warp.forward(np.full((48, 64), 1.0, np.float32), shift(z=-1.5)).depth == 0).all()
    assert (warp.forward(np.full((48, 64), 1.0, np.float32), shift(z=-1.0)).depth == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_one_pixel_after_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    depth = rng.choice([0.0, 1.0, 1.3, 2.5, 4.0], (12, 16)).astype(np.float32)
    camera = Intrinsics(12.0, 13.0, 7.2, 5.9)
    motion = shift(*rng.uniform(-0.5, 0.5, 3))
    expected = np.zeros((12, 16))
    for row in range(12):
        for column in range(16):
            z = depth[row, column]
            x, y = (column - 7.2) / 12 * z + motion[0, 3], (row - 5.9) / 13 * z + motion[1, 3]
            moved = z + motion[2, 3]
            if z == 0 or moved <= 0:
                continue
            u, v = 12 * x / moved + 7.2, 13 * y / moved + 5.9
            if min(abs(u % 1 - 0.5), abs(v % 1 - 0.5)) < 1e-3:
                return  # float32 may round to the other pixel
            u, v = round(u), round(v)
            if 0 <= u < 16 and 0 <= v < 12 and (expected[v, u] == 0 or moved < expected[v, u]):
                expected[v, u] = moved
    np.testing.assert_allclose(Warp(camera, 12, 16).forward(depth, motion).depth, expected, rtol=1e-5)


def test_motion_between_poses() -> None:
    before, after = shift(1, 2, 3), shift(1, 2, 4)
    point = np.array([0.1, 0.2, 5.0, 1.0])
    world = before @ point
    np.testing.assert_allclose(motion_between(before, after) @ point, np.linalg.inv(after) @ world)


def test_cracks_of_a_surface_that_comes_nearer_are_closed(warp: Warp) -> None:
    wall = np.full((48, 64), 2.0, np.float32)
    warped = warp.forward(wall, shift(z=-0.4))
    inside = np.s_[2:-2, 2:-2]
    assert (warped.depth[inside] == 0).mean() > 0.2
    closed = close_cracks(close_cracks(warped))
    assert (closed.depth[inside] > 0).mean() > 0.99
    assert closed.depth[closed.depth > 0] == pytest.approx(1.6)
    known = warped.depth > 0
    assert (closed.source[known] == warped.source[known]).all()


def test_the_gap_between_two_surfaces_is_no_crack(warp: Warp) -> None:
    depth = np.full((48, 64), 4.0, np.float32)
    depth[:, 20] = 2.0
    warped = warp.forward(depth, shift(x=0.4))
    assert (warped.depth[:, 25] == 0).all()
    post = np.argwhere(warped.depth[0] == 2.0).ravel()
    assert post.tolist() == [30]
    one_wide = warped.depth.copy()
    one_wide[:, 29] = 0  # between the wall at 4 m and the post at 2 m
    assert (close_cracks(warped._replace(depth=one_wide)).depth[:, 29] == 0).all()
