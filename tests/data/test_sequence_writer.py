"""Test the folder that a walk through a synthetic room is written to."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy.data.conversion import as_normals, decode_normals
from m2h_deploy.data.rooms.mesh import room_mesh
from m2h_deploy.data.rooms.walk import RoomWalk
from m2h_deploy.data.sequence_writer import write_sequence
from m2h_deploy.data.sequences.tum_writer import quaternion
from m2h_deploy.errors import M2HError
from m2h_deploy.files.provenance import is_own
from tests.commands import done, mistake

KINDS = ("rgb", "depth", "labels", "normals", "edges")


@pytest.fixture(scope="module")
def walk() -> RoomWalk:
    return RoomWalk(3, 2, height=48, width=64)


@pytest.fixture(scope="module")
def written(walk: RoomWalk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence(tmp_path_factory.mktemp("walk") / "new" / "sequence", walk)


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]


def rotation(x: float, y: float, z: float, w: float) -> np.ndarray:
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def test_the_folder_has_the_frames_of_the_walk(walk: RoomWalk, written: Path) -> None:
    assert {entry.name for entry in written.iterdir()} == {
        *KINDS, *(f"{kind}.txt" for kind in KINDS), "groundtruth.txt", "camera.json", "surface.ply"
    }  # fmt: skip
    for kind in KINDS:
        assert lines(written / f"{kind}.txt") == [
            [n, f"{kind}/{n}.png"] for n in ("1000.000000", "1000.100000", "1000.200000")
        ]
        assert all(is_own(file, "room") for file in (written / kind).iterdir())
    frame = walk[1]
    assert frame.depth is not None and frame.semantics is not None and frame.edges is not None

    def read(kind: str) -> np.ndarray:
        return np.asarray(cv2.imread(str(written / kind / "1000.100000.png"), cv2.IMREAD_UNCHANGED))

    assert np.array_equal(read("rgb"), frame.image)
    assert read("depth").dtype == np.uint16 and read("depth").min() > 0
    assert np.abs(read("depth") / 5000 - frame.depth).max() <= 0.000101
    assert np.array_equal(read("labels"), frame.semantics + 1)
    assert np.array_equal(read("edges"), frame.edges * 255)
    normals = as_normals(decode_normals(written / "normals" / "1000.100000.png"), (48, 64), "normals")
    assert np.abs(normals - frame.normals).max() < 0.01


def test_poses_and_camera_are_those_of_the_frames(walk: RoomWalk, written: Path) -> None:
    rows = lines(written / "groundtruth.txt")
    assert [row[0] for row in rows] == ["1000.000000", "1000.100000", "1000.200000"]
    for index, row in enumerate(rows):
        pose = walk.pose(index)
        numbers = np.array(row[1:], float)
        assert np.allclose(numbers[:3], pose[:3, 3], atol=1e-8)
        assert np.allclose(rotation(*numbers[3:]), pose[:3, :3], atol=1e-8)
    camera = json.loads((written / "camera.json").read_text())
    k = walk.intrinsics
    assert camera == {"width": 64, "height": 48, "fx": k.fx, "fy": k.fy, "cx": k.cx, "cy": k.cy}


def test_any_rotation_becomes_its_unit_quaternion() -> None:
    rng = np.random.default_rng(0)
    half_turns = [
        np.array([1.0, 0, 0, 0]),
        np.array([0, 1.0, 0, 0]),
        np.array([0, 0, 1.0, 0]),
        np.array([0, 0, 0, 1.0]),
    ]
    for numbers in [*half_turns, *rng.normal(size=(50, 4))]:
        unit = numbers / np.linalg.norm(numbers)
        found = quaternion(rotation(*unit))
        assert found[3] >= 0 and np.linalg.norm(found) == pytest.approx(1.0)
        assert np.allclose(rotation(*found), rotation(*unit), atol=1e-12)


def test_the_surface_is_a_mesh_that_other_programs_read(walk: RoomWalk, written: Path) -> None:
    o3d = pytest.importorskip("open3d")
    mesh = o3d.io.read_triangle_mesh(str(written / "surface.ply"))
    vertices, triangles, labels = room_mesh(walk.room)
    assert np.allclose(np.asarray(mesh.vertices), vertices, atol=1e-6)
    assert np.array_equal(np.asarray(mesh.triangles), triangles)
    assert len(np.unique(np.asarray(mesh.vertex_colors), axis=0)) == len(np.unique(labels))
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.t.geometry.TriangleMesh.from_legacy(mesh))
    frame = walk[0]
    assert frame.pose is not None and frame.depth is not None
    rays = walk.intrinsics.rays(48, 64) @ frame.pose[:3, :3].T
    starts = np.broadcast_to(frame.pose[:3, 3], rays.shape)
    hit = scene.cast_rays(o3d.core.Tensor(np.concatenate([starts, rays], axis=-1).astype(np.float32)))["t_hit"].numpy()
    assert np.mean(np.abs(hit - frame.depth) < 1e-3) > 0.99


def test_only_a_sequence_is_replaced_and_only_on_demand(walk: RoomWalk, tmp_path: Path) -> None:
    small = RoomWalk(1, 5, height=16, width=16)
    folder = tmp_path / "a"
    folder.mkdir()
    write_sequence(folder, walk)
    with pytest.raises(M2HError, match="there is a sequence already"):
        write_sequence(folder, small)
    write_sequence(folder, small, overwrite=True)
    assert len(list((folder / "rgb").iterdir())) == 1
    (folder / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(M2HError, match="not a sequence that rooms wrote"):
            write_sequence(folder, small, overwrite=overwrite)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(M2HError, match="exists: give a folder"):
        write_sequence(tmp_path / "file", small, overwrite=True)
    (tmp_path / "tum" / "rgb").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "tum" / "rgb" / "1.png"), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(M2HError, match="not a sequence that rooms wrote"):
        write_sequence(tmp_path / "tum", small, overwrite=True)
    assert (folder / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_interrupt_leaves_nothing(walk: RoomWalk, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert (done, total) == (1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sequence(tmp_path / "sequence", walk, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_sequence(tmp_path: Path) -> None:
    size = ("--height", 16, "--width", 16)
    done("rooms", tmp_path / "s", "--sequence", "--frames", 2, "--rate", 5, "--seed", 5, *size, "--noise")
    assert [row[0] for row in lines(tmp_path / "s" / "rgb.txt")] == ["1000.000000", "1000.200000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rate", 5), "--rate applies only to a sequence: give --sequence too"),
        (("--blur",), "--blur applies only to a sequence"),
        (("--exposure",), "--exposure applies only to a sequence"),
        (("--noise",), "--noise applies only to a sequence"),
        (("--sequence", "--split", "val"), "--split applies only to single rooms"),
        (("--sequence", "--rate", 1000), "1000 images per second"),
        (("--sequence", "--seed", -2), "seed -2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: tuple[object, ...], message: str, tmp_path: Path) -> None:
    assert message in mistake("rooms", tmp_path / "s", *options)
    assert list(tmp_path.iterdir()) == []
