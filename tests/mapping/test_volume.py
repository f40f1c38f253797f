"""Test the fusion of depth and labels on scenes whose surface is known."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.data.rooms.geometry import rotation_x, rotation_z
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.errors import judge_map
from m2h_deploy.mapping.surface import TrueSurface
from m2h_deploy.mapping.volume import Volume
from tests.scenes import AT_ORIGIN, CAMERA, a_room, surface_of, views_of, wall

pytestmark = pytest.mark.usefixtures("open3d")


def memory(volume: Volume) -> int:
    return sum(value.nbytes for value in vars(volume).values() if isinstance(value, np.ndarray))


def fused(*views, classes: int = 3, **settings) -> Volume:
    volume = Volume(classes, **settings)
    for view in views:
        volume.integrate(*view)
    return volume


@pytest.mark.parametrize("seed", range(3))
def test_true_depth_of_a_furnished_room_gives_its_surface(seed):
    """The world is turned and moved, so that no wall is in a plane of voxels."""
    room, volume = a_room(seed), Volume(40)
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation_z(0.4) @ rotation_x(0.2), (0.313, -0.721, 0.171)
    mesh = surface_of(room)
    truth = TrueSurface(mesh.at(mesh.vertices @ world[:3, :3].T + world[:3, 3]), spacing=0.04)
    for depth, labels, intrinsics, pose in views_of(room, 40, (60, 80), seed):
        volume.integrate(depth, labels, intrinsics, world @ pose)
        truth.observe(depth, intrinsics, world @ pose)
    errors = judge_map(volume.mesh(), truth)
    assert errors.mean < 0.005
    assert errors.fscore > 0.99
    assert errors.label_accuracy > 0.94


def test_a_wall_is_where_its_depth_says_whatever_the_voxels():
    for depth in (1.5, 1.513, 2.0371):
        mesh = fused(*[wall(depth)] * 2).mesh()
        assert len(mesh.triangles) > 100
        assert mesh.vertices[:, 2] == pytest.approx(depth, abs=1e-5)


def test_a_slanted_wall_is_flat_although_pixels_are_coarser_than_voxels():
    rays = CAMERA.rays(48, 64)
    depth = (2.0 / (1 + 0.6 * rays[..., 0] - 0.3 * rays[..., 1])).astype(np.float32)
    mesh = fused(*[(depth, None, CAMERA, AT_ORIGIN)] * 2).mesh()
    x, y, z = mesh.vertices[np.abs(mesh.vertices[:, :2]).max(axis=1) < 0.59].T
    assert len(x) > 100
    assert z == pytest.approx(2 - 0.6 * x + 0.3 * y, abs=1e-3)


def test_triangles_face_free_space():
    mesh = fused(*[wall(1.5)] * 2).mesh()
    assert (mesh.normals()[:, 2] < 0).all()


def test_a_plate_before_a_wall_has_nothing_behind_its_edges():
    depth = np.full((48, 64), 2.0, np.float32)
    depth[16:32, 20:44] = 1.2
    mesh = fused(*[(depth, None, CAMERA, AT_ORIGIN)] * 3).mesh()
    between = (mesh.vertices[:, 2] > 1.25) & (mesh.vertices[:, 2] < 1.95)
    assert (mesh.vertices[:, 2] < 1.25).any() and (mesh.vertices[:, 2] > 1.95).any()
    assert not between.any()


def test_space_that_later_views_see_through_is_free():
    volume = fused(*[wall(1.0)] * 3)
    assert volume.mesh().vertices[:, 2] == pytest.approx(1.0)
    for _ in range(60):
        volume.integrate(*wall(2.0))
    mesh = volume.mesh()
    assert len(mesh.triangles) > 100
    assert mesh.vertices[:, 2] == pytest.approx(2.0, abs=0.01)


def test_near_views_outvote_distant_ones():
    """The same wall, measured 4 cm too near from 1 m and exactly from 2 m."""
    back = np.eye(4)
    back[2, 3] = -1.0
    near, far = wall(0.96), wall(2.0)._replace(pose=back)
    mesh = fused(near, near, far, far).mesh()
    both = np.abs(mesh.vertices[:, :2]).max(axis=1) < 0.35
    assert np.median(mesh.vertices[both, 2]) == pytest.approx(1 - 0.04 * 16 / 17, abs=0.003)


def test_memory_depends_on_the_surface_and_not_on_the_number_of_frames():
    room, volume = a_room(0), Volume(40)
    views = list(views_of(room, 4, (24, 32)))
    for view in views:
        volume.integrate(*view)
    before = (volume.blocks, memory(volume))
    for view in views * 3:
        volume.integrate(*view)
    assert (volume.blocks, memory(volume)) == before
    assert before[1] > 1_000_000


def test_the_same_views_give_the_same_mesh_and_another_order_nearly_the_same():
    views = list(views_of(a_room(0), 6, (24, 32)))
    first, again, backwards = (fused(*order, classes=40).mesh(1) for order in (views, views, views[::-1]))
    assert len(first.triangles) > 100
    for name in ("vertices", "triangles", "labels"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert len(backwards.triangles) == pytest.approx(len(first.triangles), rel=0.01)


def test_a_map_far_from_the_origin_is_as_exact(open3d):
    room, shift = a_room(0), np.array([8000.0, -4000.0, 0.0])  # whole blocks, so that the voxels are the same
    near, far = Volume(40), Volume(40)
    for view in views_of(room, 6, (24, 32)):
        near.integrate(*view)
        pose = view.pose.copy()
        pose[:3, 3] += shift
        far.integrate(*view._replace(pose=pose))
    one, other = near.mesh(), far.mesh()
    assert np.array_equal(one.triangles, other.triangles)
    assert np.array_equal(one.labels, other.labels)
    assert np.abs(other.vertices - shift - one.vertices).max() < 1e-5


def test_a_label_needs_most_votes_and_255_is_no_vote():
    assert set(fused(wall(1.5, 1), wall(1.5, 2), wall(1.5, 1)).mesh().labels) == {1}
    assert set(fused(wall(1.5, 2), wall(1.5), wall(1.5), wall(1.5)).mesh().labels) == {2}
    assert set(fused(wall(1.5), wall(1.5)).mesh().labels) == {255}
    assert set(fused(wall(1.5)._replace(labels=None), wall(1.5, 3)).mesh().labels) == {255}  # there are 3 classes


def test_labels_keep_their_places():
    view = wall(1.5, 0)
    view.labels[:, 32:] = 2
    mesh = fused(view, view).mesh()
    clear = np.abs(mesh.vertices[:, 0]) > 0.06
    assert (mesh.labels[clear] == np.where(mesh.vertices[clear, 0] > 0, 2, 0)).all()


def test_voxels_that_too_few_views_saw_are_left_out():
    volume = fused(wall(1.5))
    assert len(volume.mesh().triangles) == 0
    assert len(volume.mesh(views=1).triangles) > 100


@pytest.mark.parametrize("depth", [0.0, np.nan, np.inf, 0.05, -1.0, 5.3])
def test_unknown_depth_and_depth_out_of_range_make_no_surface(depth):
    assert len(fused(*[wall(depth)] * 3).mesh().triangles) == 0


def test_depth_beyond_the_range_tells_that_nearer_space_is_free():
    volume = fused(*[wall(1.0)] * 2)
    for _ in range(60):
        volume.integrate(*wall(7.0))
    assert len(volume.mesh().triangles) == 0


def test_a_surface_at_the_end_of_the_range_is_complete():
    mesh = fused(*[wall(4.99)] * 2).mesh()
    assert np.ptp(mesh.vertices[:, 0]) == pytest.approx(63 / 56 * 4.99, rel=0.05)


@pytest.mark.parametrize(
    "settings", [{"voxel": 0.0}, {"truncation": 0.01}, {"depth_range": (0.0, 5.0)}, {"depth_range": (2.0, 1.0)}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(M2HError, match="truncation must be at least the voxel"):
        Volume(3, **settings)
