"""Test that a walk through a synthetic room is deterministic, smooth, free of collisions, and exact."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from m2h_deploy.data.frame import Frame
from m2h_deploy.data.rooms.geometry import BOX, CYLINDER, Solid, first_hit
from m2h_deploy.data.rooms.layout import make_room
from m2h_deploy.data.rooms.mesh import room_mesh
from m2h_deploy.data.rooms.path import CLEARANCE, CameraPath
from m2h_deploy.data.rooms.render import ROOM_CLASSES, render_room
from m2h_deploy.data.rooms.walk import Effects, RoomWalk
from m2h_deploy.errors import M2HError

SIZE = {"height": 48, "width": 64}
LABELS = ("depth", "normals", "semantics", "edges", "pose", "timestamp")


@pytest.fixture(scope="module")
def walk() -> RoomWalk:
    return RoomWalk(40, 3, **SIZE)


@pytest.fixture(scope="module")
def frames(walk: RoomWalk) -> list[Frame]:
    return [walk[index] for index in (0, 6, 12, 39)]


def same(a: Frame, b: Frame, names: tuple[str, ...] = LABELS) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_a_frame_is_the_same_alone_in_a_longer_walk_and_at_another_rate(frames: list[Frame]) -> None:
    longer, faster = RoomWalk(300, 3, **SIZE), RoomWalk(100, 3, 20.0, **SIZE)
    assert same(longer[12], frames[2], (*LABELS, "image", "name"))  # without the frames before it
    assert same(longer[6], frames[1], (*LABELS, "image", "name"))
    assert same(faster[12], frames[1], ("depth", "semantics", "pose", "timestamp"))


def test_another_seed_is_another_room_and_no_room_of_the_single_ones(walk: RoomWalk) -> None:
    other = RoomWalk(1, 4, **SIZE)
    assert not np.array_equal(walk.room.size, other.room.size)
    singles = [make_room(np.random.default_rng([3, index])).size for index in range(20)]
    assert not any(np.array_equal(walk.room.size, size) for size in singles)


def test_frames_have_the_documented_labels(walk: RoomWalk, frames: list[Frame]) -> None:
    assert len(walk) == 40 and walk[1].timestamp == 1000.1 and walk[1].name == "1000.100000"
    for frame in frames:
        assert frame.depth is not None and frame.depth.dtype == np.float32 and frame.depth.min() > 0.15
        assert frame.semantics is not None and set(np.unique(frame.semantics)) <= set(ROOM_CLASSES)
        assert frame.normals is not None and np.allclose(np.linalg.norm(frame.normals, axis=-1), 1, atol=1e-5)
        assert frame.pose is not None and np.allclose(frame.pose[:3, :3] @ frame.pose[:3, :3].T, np.eye(3))
        assert np.linalg.det(frame.pose[:3, :3]) == pytest.approx(1.0)
        assert frame.pose[2, 2] < 0.5, "the camera looks forward, not up"
        assert frame.pose[2, 1] < -0.7, "the camera's down axis points to the floor"
        assert 30 < frame.image.mean() < 225


def distance(solid: Solid, point: np.ndarray) -> float:
    """Compute the distance of a point to a solid, without the grid that the path is planned on."""
    local = (point - solid.center) @ solid.rotation
    if solid.kind == BOX:
        return float(np.linalg.norm(np.maximum(np.abs(local) - solid.half, 0)))
    if solid.kind == CYLINDER:
        beyond = np.hypot(local[0], local[1]) - solid.half[0], abs(local[2]) - solid.half[2]
        return float(np.hypot(*np.maximum(beyond, 0)))
    angles = np.linspace(0, 2 * np.pi, 60)
    up, around = np.meshgrid(angles / 2 - np.pi / 2, angles)
    sphere = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1)
    return float(np.linalg.norm(sphere * solid.half - local, axis=-1).min()) - 0.02


@pytest.mark.parametrize("seed", [1, 11, 17, 26])  # among them the most crowded rooms
def test_the_path_is_smooth_and_keeps_away_from_everything(seed: int) -> None:
    room = make_room(np.random.default_rng([seed, 0, 1]))
    path = CameraPath(room, np.random.default_rng([seed, 0, 2]))
    step = 0.05
    poses = [path.at(step * number) for number in range(600)]
    places, turns = np.array([p for p, _ in poses]), np.array([t for _, t in poses])
    velocity, spin = np.diff(places, axis=0) / step, np.degrees(np.diff(turns, axis=0)) / step
    assert 0.25 < np.linalg.norm(velocity, axis=1).mean() < 0.6
    assert np.linalg.norm(velocity, axis=1).max() < 0.65
    assert np.linalg.norm(np.diff(velocity, axis=0) / step, axis=1).max() < 2.0
    assert np.abs(spin).max() < 45 and np.abs(spin[:, 0]).mean() > 5
    assert np.abs(np.diff(spin, axis=0) / step).max() < 120, "degrees per square second"
    assert np.minimum(places, room.size - places).min() >= CLEARANCE
    assert min(distance(solid, place) for place in places[::4] for solid in room.solids) >= CLEARANCE


def test_the_camera_sees_much_of_the_room_from_several_places() -> None:
    for seed in (0, 4, 11):
        walk = RoomWalk(200, seed, height=24, width=32)
        seen: dict[tuple[int, ...], list[np.ndarray]] = {}
        medians = []
        for index in range(0, 200, 8):
            pose = walk.pose(index)
            rays = walk.intrinsics.rays(24, 32) @ pose[:3, :3].T
            depth, _ = first_hit(walk.room.solids, walk.room.size, pose[:3, 3], rays)
            medians.append(np.median(depth))
            for cell in np.unique(((pose[:3, 3] + depth[..., None] * rays) / 0.3).astype(int).reshape(-1, 3), axis=0):
                seen.setdefault(tuple(cell), []).append(pose[:3, 3])
        assert 1.2 < np.median(medians) < 4 and np.mean(np.array(medians) < 0.8) < 0.1
        twice = [cell for cell, places in seen.items() if np.ptp(places, axis=0).max() > 0.4]
        floor_and_walls = np.prod(walk.room.size[:2]) + 2 * walk.room.size[:2].sum() * walk.room.size[2]
        assert len(twice) * 0.09 > 0.4 * floor_and_walls


def project(frame: Frame, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Project world points into a frame: columns, rows and depth."""
    assert frame.pose is not None and frame.intrinsics is not None
    seen = (points - frame.pose[:3, 3]) @ frame.pose[:3, :3]
    k = frame.intrinsics
    return seen[..., 0] / seen[..., 2] * k.fx + k.cx, seen[..., 1] / seen[..., 2] * k.fy + k.cy, seen[..., 2]


def world(frame: Frame) -> np.ndarray:
    assert frame.pose is not None and frame.intrinsics is not None and frame.depth is not None
    points = frame.intrinsics.rays(frame.height, frame.width) * frame.depth[..., None]
    return np.asarray(points @ frame.pose[:3, :3].T + frame.pose[:3, 3])


def test_a_pixel_of_one_frame_has_in_another_the_depth_that_the_poses_predict(frames: list[Frame]) -> None:
    first, second = frames[:2]
    assert first.pose is not None and second.pose is not None and second.depth is not None
    assert np.linalg.norm(first.pose[:3, 3] - second.pose[:3, 3]) > 0.1
    points = world(first)
    u, v, depth = project(second, points)
    inside = (u > 1) & (u < 62) & (v > 1) & (v < 46) & (depth > 0)
    # Inverse depth of a plane is linear in the image, so that interpolation is exact within a flat face.
    columns, rows = u.astype(np.float32), v.astype(np.float32)
    stored = 1 / cv2.remap(
        (1 / second.depth).astype(np.float32), columns, rows, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE
    )
    error = np.abs(stored - depth)[inside]
    assert inside.mean() > 0.3 and np.mean(error < 0.01) > 0.75 and np.median(error) < 0.002
    # What is nearer in the second frame hides the point; what is farther contradicts it, except beside an edge.
    assert np.mean((stored - depth)[inside] > 0.05) < 0.1
    classes = second.semantics[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]  # type: ignore[index]
    close = error < 0.01
    assert first.semantics is not None and np.mean((classes == first.semantics[inside])[close]) > 0.93


def test_depth_is_that_of_rays_against_the_surface(walk: RoomWalk, frames: list[Frame]) -> None:
    vertices, triangles, labels = room_mesh(walk.room)
    a, b, c = (vertices[triangles[:, corner]] for corner in range(3))
    normal = np.cross(b - a, c - a)
    for frame in frames[:2]:
        assert frame.pose is not None and frame.depth is not None and frame.semantics is not None
        assert frame.intrinsics is not None
        origin = frame.pose[:3, 3]
        rays = (frame.intrinsics.rays(frame.height, frame.width) @ frame.pose[:3, :3].T)[2::9, 2::9].reshape(-1, 3)
        nearest, hit = np.full(len(rays), np.inf), np.zeros(len(rays), int)
        for number, ray in enumerate(rays):  # Moeller-Trumbore; triangles that face away are not visible
            facing = normal @ ray
            u = -np.einsum("ij,ij->i", np.cross(origin - a, ray), c - a) / facing
            v = np.einsum("ij,ij->i", np.cross(origin - a, ray), b - a) / facing
            along = np.einsum("ij,ij->i", a - origin, normal) / facing
            ok = (facing < 0) & (u >= -1e-9) & (v >= -1e-9) & (u + v <= 1 + 1e-9) & (along > 0)
            nearest[number], hit[number] = along[ok].min(), np.flatnonzero(ok)[along[ok].argmin()]
        depth = frame.depth[2::9, 2::9].reshape(-1)
        assert np.mean(np.abs(nearest - depth) < 1e-3) > 0.98, "all but the outlines of curved solids"
        classes = frame.semantics[2::9, 2::9].reshape(-1)
        assert np.mean(labels[triangles[hit, 0]] == classes) > 0.98


def test_the_surface_of_a_curved_solid_is_within_half_a_millimeter() -> None:
    room = RoomWalk(1, 4, height=16, width=16).room
    curved = [index for index, solid in enumerate(room.solids) if solid.kind != BOX]
    assert {room.solids[index].kind for index in curved} == {"cylinder", "ellipsoid"}
    for index in curved:
        solid = room.solids[index]
        alone = type(room)(room.size, room.faces, [solid], room.lights, room.ambient, room.tile)
        vertices, triangles, labels = room_mesh(alone)
        own = triangles[labels[triangles[:, 0]] == solid.label][-len(triangles) + 12 :]
        local = (vertices[own] - solid.center) @ solid.rotation / solid.half
        middle = local.mean(axis=1)
        radius = np.linalg.norm(middle[:, :2] if solid.kind == CYLINDER else middle, axis=1)
        half = (solid.half[:2] if solid.kind == CYLINDER else solid.half).max()
        side = np.abs(middle[:, 2]) < 0.999 if solid.kind == CYLINDER else np.ones(len(middle), bool)
        assert ((1 - radius[side]) * half < 5e-4).all() and (radius < 1 + 1e-9).all()
        outward = np.cross(local[:, 1] - local[:, 0], local[:, 2] - local[:, 0])
        assert (np.einsum("ij,ij->i", outward, middle) > 0).all(), "counterclockwise seen from outside"


def test_light_does_not_flicker(walk: RoomWalk) -> None:
    """Two frames from almost the same place, without sensor noise, show the same light."""
    slow = RoomWalk(2, 3, 240.0, **SIZE)
    lights = [slow._light(camera, slow_hits) for camera, slow_hits in map(slow._view, (0.0, 1e-6))]
    assert np.abs(lights[0] - lights[1]).max() < 0.01 * lights[0].mean()
    single = [render_room(3, 0, **SIZE).image for _ in range(2)]
    assert np.array_equal(*single)


def test_effects_change_the_image_and_no_label() -> None:
    plain = RoomWalk(60, 3, **SIZE)
    moving = next(
        i for i in range(10, 60, 5) if abs(plain._path.at(i / 10)[1][0] - plain._path.at(i / 10 + 0.1)[1][0]) > 0.03
    )
    frame = plain[moving]
    shown = {name: RoomWalk(60, 3, effects=Effects(**{name: True}), **SIZE) for name in ("blur", "exposure", "noise")}
    for name, other in shown.items():
        assert same(other[moving], frame), name
        assert not np.array_equal(other[moving].image, frame.image), name

    def sharpness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(float).mean(axis=-1), axis=1)).mean())

    assert sharpness(shown["blur"][moving].image) < sharpness(frame.image) < sharpness(shown["noise"][moving].image)
    gains = [shown["exposure"]._exposure(time).gain / plain._exposure(time).gain for time in np.arange(0, 40, 0.1)]
    assert 0.6 <= min(gains) < 0.8 and 1.25 < max(gains) <= 1.6 and np.abs(np.diff(gains)).max() < 0.15
    assert plain._exposure(0.0) is plain._exposure(7.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "0 frames"),
        ({"count": 1, "rate": 0.0}, "0 images per second: expected 0.1 to 240"),
        ({"count": 1, "rate": float("nan")}, "nan images per second"),
        ({"count": 1, "seed": -1}, "seed -1"),
        ({"count": 1, "width": 8}, "240x8"),
    ],
)
def test_bad_numbers_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(M2HError, match=message):
        RoomWalk(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "moves"), [(0.4, True), (2.3, False)])
def test_a_room_full_of_furniture_has_a_path(height: float, moves: bool) -> None:
    """Low furniture is passed over; between high furniture, the camera turns on the spot."""
    room = make_room(np.random.default_rng(0))
    grid = [(x, y) for x in np.arange(0.4, room.size[0], 0.8) for y in np.arange(0.4, room.size[1], 0.8)]
    half, box = np.array([0.2, 0.2, height / 2]), next(solid for solid in room.solids if solid.kind == BOX)
    full = [replace(box, center=np.array([x, y, height / 2]), half=half, rotation=np.eye(3)) for x, y in grid]
    path = CameraPath(replace(room, solids=full), np.random.default_rng(1))
    places = np.array([path.at(time)[0] for time in np.arange(0, 6, 0.5)])
    assert (np.ptp(places[:, :2], axis=0).max() > 0.5) == moves
    assert min(distance(solid, place) for place in places for solid in full) > 0.2
