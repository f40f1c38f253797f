"""Test what keeps the light in a sequence of a synthetic room from flickering: fixed shadows, averaged textures."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.data.rooms.geometry import Camera, Hits, dot
from m2h_deploy.data.rooms.shading import _SUBPIXELS, _spots
from m2h_deploy.data.rooms.shadows import every, fixed_shadows, random_shadows
from m2h_deploy.data.rooms.walk import RoomWalk


@pytest.fixture(scope="module")
def walk() -> RoomWalk:
    return RoomWalk(200, 7, height=48, width=64)


@pytest.fixture(scope="module")
def views(walk: RoomWalk) -> list[tuple[Camera, Hits]]:
    return [walk._view(time) for time in (0.0, 1.0, 8.0)]


def test_fixed_shadows_are_the_mean_of_random_ones(walk: RoomWalk, views: list[tuple[Camera, Hits]]) -> None:
    rng = np.random.default_rng(0)
    fixed, drawn = fixed_shadows(walk.room), random_shadows(walk.room, rng)
    lamp = next(light for light in walk.room.lights if light.color.max() > 0.02)
    for _, hits in views:
        points = every(hits, 3)
        mean = np.mean([drawn(lamp, points) for _ in range(60)], axis=0)
        share = fixed(lamp, points)
        assert share.min() >= 0 and share.max() <= 1 + 1e-12
        assert np.abs(share - mean).mean() < 0.07
        assert np.corrcoef(share, mean)[0, 1] > 0.9


def test_a_shadow_does_not_depend_on_the_frames_before(walk: RoomWalk, views: list[tuple[Camera, Hits]]) -> None:
    lamp = walk.room.lights[0]
    used, fresh = fixed_shadows(walk.room), fixed_shadows(walk.room)
    for _, hits in views[:2]:
        used(lamp, every(hits, 3))
    last = every(views[2][1], 3)
    assert np.array_equal(used(lamp, last), fresh(lamp, last))
    assert np.array_equal(used(lamp, last), fresh(lamp, last))


def test_colors_are_averaged_over_points_of_the_surface_within_the_pixel(views: list[tuple[Camera, Hits]]) -> None:
    for camera, hits in views:
        rows, columns = np.indices(hits.depth.shape)
        for (x, y), spot in zip(_SUBPIXELS, _spots(camera, hits), strict=True):
            assert np.abs(dot(spot, hits.normals)).max() < 1e-9, "in the surface's plane"
            seen = (hits.points + spot - camera.position) @ camera.rotation
            u = seen[..., 0] / seen[..., 2] * camera.intrinsics.fx + camera.intrinsics.cx
            v = seen[..., 1] / seen[..., 2] * camera.intrinsics.fy + camera.intrinsics.cy
            assert np.median(np.abs(u - columns - x)) < 0.03 and np.median(np.abs(v - rows - y)) < 0.03
