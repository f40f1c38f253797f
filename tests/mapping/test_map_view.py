"""Test the pictures of maps."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.view import error_from_above, picture_of_mesh, up_of
from tests.scenes import a_room, joined, sheet, surface_of

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def pose(down: list[float]) -> np.ndarray:
    found = np.eye(4)
    found[:3, 1] = np.array(down) / np.linalg.norm(down)
    return found


@pytest.mark.parametrize(
    ("downs", "up"),
    [
        ([[0.1, 0, -1], [-0.3, 0.2, -1]], [0, 0, 1]),
        ([[0, 1, 0.3]], [0, -1, 0]),
        ([[1, 1, 0]], [-(0.5**0.5), -(0.5**0.5), 0]),
    ],
)
def test_up_is_the_axis_near_the_mean_of_the_cameras_or_that_mean(downs, up):
    assert up_of([pose(down) for down in downs]) == pytest.approx(up)


def floor_and_ceiling() -> SemanticMesh:
    """A floor of class 1 that faces up, and a ceiling of class 0 that faces down."""
    floor = sheet(0.0, label=1)
    return joined(SemanticMesh(floor.vertices, floor.triangles[:, ::-1], floor.labels), sheet(2.5, label=0))


@pytest.mark.usefixtures("open3d")
@pytest.mark.parametrize("turned", [False, True])
def test_one_looks_through_the_ceiling_at_the_floor(turned):
    mesh, up = floor_and_ceiling(), np.array([0.0, 0.0, 1.0])
    if turned:  # a world with y down
        mesh, up = mesh.at(mesh.vertices[:, [0, 2, 1]] * [1, -1, 1]), np.array([0.0, -1.0, 0.0])
    picture = picture_of_mesh(mesh, COLORS, up, (60, 80))
    assert picture.shape == (60, 80, 3) and picture.dtype == np.uint8
    blue, green, red = picture[(picture < 250).any(axis=2)].T.astype(int)
    assert len(green) > 500
    assert (green > 150).mean() > 0.8
    assert (red == blue).all()  # green, or white at the border
    assert (picture[:3] == 255).all()


@pytest.mark.usefixtures("open3d")
def test_a_room_shows_its_floor_furniture_and_far_walls():
    room = a_room(1)
    colors = np.zeros((40, 3), np.uint8)
    colors[:, 0] = 6 * np.arange(1, 41)
    mesh = surface_of(room)
    picture = picture_of_mesh(mesh, colors, np.array([0.0, 0.0, 1.0]), (120, 160))
    assert (picture == 255).all(axis=2).mean() < 0.7
    assert len(np.unique(picture[..., 2])) > 10


@pytest.mark.usefixtures("open3d")
def test_pictures_around_one_mesh_show_the_same_place():
    whole = floor_and_ceiling()
    part = SemanticMesh(whole.vertices, whole.triangles[:1], whole.labels)
    up = np.array([0.0, 0.0, 1.0])
    complete, partial = (picture_of_mesh(mesh, COLORS, up, (60, 80), around=whole) for mesh in (whole, part))
    drawn = (partial != 255).any(axis=2)
    assert 100 < drawn.sum() < 0.6 * (complete != 255).any(axis=2).sum()
    inside = (partial == complete).all(axis=2)
    assert (inside & drawn).sum() > 0.8 * drawn.sum()


@pytest.mark.usefixtures("open3d")
def test_an_empty_mesh_is_a_white_picture_and_a_mesh_without_labels_is_gray():
    up = np.array([0.0, 0.0, 1.0])
    assert (picture_of_mesh(SemanticMesh.empty(), COLORS, up, (20, 30)) == 255).all()
    mesh = floor_and_ceiling()
    picture = picture_of_mesh(SemanticMesh(mesh.vertices, mesh.triangles), COLORS, up, (60, 80))
    assert (picture.max(axis=2) == picture.min(axis=2)).all()
    assert (picture < 250).any()


def bluish_and_yellow(picture: np.ndarray) -> tuple[int, int]:
    """Count the pixels of the first and the last color of the error map."""
    blue, green, red = np.moveaxis(picture.astype(int), -1, 0)
    return int(((blue > 70) & (red < 80) & (green < 30)).sum()), int(((red > 230) & (green > 210) & (blue < 60)).sum())


def test_errors_from_above_leave_out_the_ceiling():
    pytest.importorskip("matplotlib")
    points = sheet(0.0).sample(0.02).points
    high = points + np.array([0, 0, 2.5])
    both = np.concatenate([points, high])
    distances = np.repeat([0.0, 0.2], len(points))
    path = np.array([[-0.5, 0, 1.2], [0.5, 0, 1.3]])
    up = np.array([0.0, 0.0, 1.0])
    first, last = bluish_and_yellow(error_from_above(both, distances, path, up, most=0.2))
    assert first > 20 * last
    first, last = bluish_and_yellow(error_from_above(both, distances, np.zeros((0, 3)), up, most=0.1))
    assert last > 20 * first


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((3, 3))])
def test_a_map_without_points_or_extent_is_drawn(points):
    pytest.importorskip("matplotlib")
    picture = error_from_above(points, np.full(len(points), 0.1), np.zeros((1, 3)), np.array([0.0, 0.0, 1.0]))
    assert picture.ndim == 3 and picture.dtype == np.uint8
