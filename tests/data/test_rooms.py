"""Test that synthetic rooms are deterministic, geometrically exact and varied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2h_deploy.data.classes import NYU40_CLASSES, nyu_class
from m2h_deploy.data.frame import Frame
from m2h_deploy.data.labels import boundaries, normals_from_depth
from m2h_deploy.data.rooms.furniture import make_style
from m2h_deploy.data.rooms.geometry import BOX, CYLINDER, ELLIPSOID, Solid, cast, intersect, look, surfaces
from m2h_deploy.data.rooms.layout import choose_camera, make_room
from m2h_deploy.data.rooms.materials import Material
from m2h_deploy.data.rooms.render import ROOM_CLASSES, Rooms, render_room, render_room_with_instances, segments
from m2h_deploy.errors import M2HError

SIZE = (120, 160)


@pytest.fixture(scope="module")
def rooms() -> list[Frame]:
    return list(Rooms(6, seed=11, height=SIZE[0], width=SIZE[1]))


def test_same_integers_give_the_same_frame(rooms: list[Frame]) -> None:
    again = render_room(11, 2, *SIZE)
    for name in ("image", "depth", "normals", "semantics", "edges"):
        assert np.array_equal(getattr(again, name), getattr(rooms[2], name)), name


def test_another_index_or_seed_is_another_room(rooms: list[Frame]) -> None:
    other = render_room(12, 2, *SIZE)
    assert not np.array_equal(rooms[2].semantics, rooms[3].semantics)
    assert not np.array_equal(rooms[2].semantics, other.semantics)
    assert len({f.name for f in rooms} | {other.name}) == 7


def test_labels_have_the_documented_types_and_ranges(rooms: list[Frame]) -> None:
    for frame in rooms:
        assert frame.image.dtype == np.uint8 and frame.image.shape == (*SIZE, 3)
        assert frame.depth is not None and frame.depth.dtype == np.float32
        assert np.isfinite(frame.depth).all() and frame.depth.min() > 0 and frame.depth.max() < 10
        assert frame.normals is not None and frame.normals.dtype == np.float32
        assert np.allclose(np.linalg.norm(frame.normals, axis=-1), 1.0, atol=1e-5)
        assert frame.semantics is not None and set(np.unique(frame.semantics)) <= set(ROOM_CLASSES)
        assert frame.edges is not None and set(np.unique(frame.edges)) == {0, 1}
        assert frame.derived == frozenset()


def test_visible_surfaces_never_face_away_from_the_camera(rooms: list[Frame]) -> None:
    for frame in rooms:
        assert frame.intrinsics is not None and frame.normals is not None
        # Normals point into the surface, as the viewing ray does.
        assert ((frame.normals * frame.intrinsics.rays(*SIZE)).sum(-1) > 0).all()


def test_the_floor_is_one_plane_at_a_constant_height(rooms: list[Frame]) -> None:
    floor = nyu_class("floor")
    seen = 0
    for frame in rooms:
        assert frame.depth is not None and frame.normals is not None and frame.intrinsics is not None
        mask = frame.semantics == floor
        if mask.sum() < 50:
            continue
        seen += 1
        normal = frame.normals[mask][0].astype(np.float64)
        assert normal[1] > 0.7, "a floor's normal points down the image, (0, 1, 0) when level"
        rays = frame.intrinsics.rays(*SIZE)[mask]
        heights = (rays @ normal) * frame.depth[mask]
        camera_height = float(np.median(heights))
        assert 0.7 < camera_height < 1.7
        # Depth of a plane seen by a pinhole camera, computed without the ray caster.
        assert np.allclose(frame.depth[mask], camera_height / (rays @ normal), rtol=1e-5)
    assert seen >= 4


def test_normals_agree_with_depth_where_the_neighborhood_is_one_plane(rooms: list[Frame]) -> None:
    for frame in rooms:
        assert frame.depth is not None and frame.normals is not None and frame.intrinsics is not None
        derived = normals_from_depth(frame.depth, frame.intrinsics, window=3)
        # Planes as (normal, distance to the camera): a picture and its wall share only the normal.
        distance = (frame.intrinsics.rays(*SIZE) * frame.normals).sum(-1) * frame.depth
        planes = np.dstack([frame.normals, distance])
        steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
        flat = np.all([np.abs(np.roll(planes, step, (0, 1)) - planes).max(-1) < 1e-4 for step in steps], axis=0)
        flat[[0, -1]] = flat[:, [0, -1]] = False
        assert flat.mean() > 0.5
        cosine = (derived * frame.normals).sum(-1)[flat]
        assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.5


def test_axes_of_the_normals_are_the_ones_of_equation_16a() -> None:
    """An empty room: floor, ceiling, right and left wall, and the wall ahead."""
    room = np.array([4.0, 5.0, 2.5])
    camera = look(np.array([2.0, 1.0, 1.2]), (0.0, 0.0, 0.0), render_room(0, 0, 32, 40).intrinsics, (32, 40))  # type: ignore[arg-type]
    depth, index, rays = cast([], room, camera)
    normals = -(surfaces([], camera, depth, index, rays).normals @ camera.rotation)
    assert np.allclose(normals[31, 20], (0, 1, 0)) and np.allclose(normals[0, 20], (0, -1, 0))
    assert np.allclose(normals[16, 39], (1, 0, 0)) and np.allclose(normals[16, 0], (-1, 0, 0))
    assert np.allclose(normals[16, 20], (0, 0, 1))
    assert depth[16, 20] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(BOX, 3.0), (CYLINDER, 3.0), (ELLIPSOID, 3.0)],
)
def test_distance_along_the_axis_is_the_gap_to_the_solid(kind: str, expected: float) -> None:
    solid = Solid(
        kind, np.array([0.0, 4.0, 1.0]), np.array([0.5, 1.0, 0.3]), np.eye(3), 0, 1, Material("plain", (1, 1, 1))
    )
    ahead, beside, away = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    reach = intersect(solid, np.array([0.0, 0.0, 1.0]), np.stack([ahead, beside, away]))
    assert reach[0] == pytest.approx(3.0)
    assert np.isinf(reach[1:]).all()


def test_edges_lie_exactly_between_objects() -> None:
    frame, instances = render_room_with_instances(11, 0, *SIZE)
    assert frame.semantics is not None and frame.edges is not None
    numbers = segments(frame.semantics, instances)
    expected = np.zeros(SIZE, bool)
    expected[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    expected[:-1] |= numbers[:-1] != numbers[1:]
    assert np.array_equal(frame.edges.astype(bool), expected)


def test_every_class_of_the_rooms_occurs() -> None:
    seen: set[int] = set()
    for index in range(60):
        # The same rooms and cameras as in `render_room`, without the light.
        rng = np.random.default_rng([3, index])
        room = make_room(rng)
        seen |= {solid.label for solid in room.solids}
    always = {nyu_class(name) for name in ("wall", "floor", "ceiling")}
    assert seen | always == set(ROOM_CLASSES)


def test_cameras_are_outside_all_solids() -> None:
    intrinsics = render_room(0, 0, 16, 16).intrinsics
    assert intrinsics is not None
    for index in range(15):
        rng = np.random.default_rng([5, index])
        room = make_room(rng)
        camera = choose_camera(room, rng, intrinsics, (16, 16))
        for solid in room.solids:
            inside = np.abs((camera.position - solid.center) @ solid.rotation) < solid.half
            assert not inside.all()


def test_styles_vary() -> None:
    styles = {make_style(np.random.default_rng(seed)) for seed in range(5)}
    assert len(styles) == 5


def test_images_are_exposed_like_photographs() -> None:
    means = [render_room(21, i, 60, 80).image.mean() for i in range(8)]
    assert all(50 < mean < 205 for mean in means)
    assert np.std(means) > 3


def test_bad_sizes_and_numbers_are_named() -> None:
    with pytest.raises(M2HError, match="8x320"):
        render_room(0, 0, 8, 320)
    with pytest.raises(M2HError, match="seed -1"):
        render_room(-1, 0)


def test_boundaries_close_thin_gaps_but_not_large_holes() -> None:
    labels = np.zeros((20, 60), np.int32)
    labels[:, :10], labels[:, 13:25] = 1, 2
    edges = boundaries(labels)
    assert edges[:, 9:14].any(axis=1).all(), "the two segments meet across the gap"
    assert not edges[:, 26:].any(), "a large unlabeled area has no boundary of its own"


def test_normals_are_unknown_where_depth_is() -> None:
    frame = render_room(11, 1, *SIZE)
    assert frame.depth is not None and frame.intrinsics is not None
    depth = frame.depth.copy()
    depth[40:80, 40:80] = 0
    normals = normals_from_depth(depth, frame.intrinsics)
    assert (normals[40:80, 40:80] == 0).all()
    assert np.isfinite(normals).all()


def test_class_order_is_the_official_one() -> None:
    mapping = Path(__file__).parents[3] / "shared" / "nyuv2_meta" / "classMapping40.mat"
    if not mapping.is_file():
        pytest.skip("the official class mapping is not here")
    from scipy.io import loadmat

    assert tuple(str(name[0]) for name in loadmat(mapping)["className"].ravel()) == NYU40_CLASSES
