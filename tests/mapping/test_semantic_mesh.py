"""Test meshes with labels: sampling, files, and a form that does not depend on order."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import SemanticMesh, read_mesh, unique_rows
from tests.scenes import joined, sheet

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def test_samples_are_uniform_by_area_lie_on_the_surface_and_are_reproducible():
    mesh = joined(sheet(0.0, half=1.0, label=1), sheet(2.0, half=0.5, label=2))
    samples = mesh.sample(0.05)
    assert len(samples.points) == pytest.approx(5 / 0.05**2, abs=1)
    assert samples.points[:, 2] == pytest.approx(np.where(samples.labels == 1, 0, 2))
    assert np.mean(samples.labels == 1) == pytest.approx(0.8, abs=0.001)
    assert samples.normals == pytest.approx(np.tile([0, 0, -1.0], (len(samples.points), 1)))
    counts, _, _ = np.histogram2d(*samples.points[samples.labels == 1, :2].T, bins=4)
    assert counts == pytest.approx(np.full((4, 4), 100), abs=40)
    assert np.array_equal(mesh.sample(0.05).points, samples.points)


def test_the_number_of_samples_has_a_limit():
    assert len(sheet(0.0).sample(0.01, limit=500).points) == 500


def test_a_mesh_without_triangles_has_no_samples():
    samples = SemanticMesh.empty().sample()
    assert samples.points.shape == samples.normals.shape == (0, 3)
    assert samples.labels.shape == (0,)


def test_a_label_is_that_of_the_nearest_corner():
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
    samples = SemanticMesh(corners, np.array([[0, 1, 2]]), np.array([0, 1, 2], np.uint8)).sample(0.02)
    shares = np.stack([1 - samples.points[:, :2].sum(axis=1), *samples.points[:, :2].T])
    assert (samples.labels == shares.argmax(axis=0)).all()


def test_the_canonical_form_does_not_depend_on_the_order_and_drops_what_has_no_area():
    mesh = joined(sheet(0.0), sheet(1.0))
    order = np.random.default_rng(0).permutation(len(mesh.vertices))
    place = np.argsort(order)
    mixed = SemanticMesh(
        np.concatenate([mesh.vertices[order], mesh.vertices[order[:1]], [[9.0, 9.0, 9.0]]]),
        np.concatenate([np.roll(place[mesh.triangles][::-1], 1, axis=1), [[0, 8, 1]]]),
    )
    first, second = mesh.canonical(), mixed.canonical()
    assert np.array_equal(first.vertices, second.vertices)
    assert np.array_equal(first.triangles, second.triangles)
    assert len(first.vertices) == 8
    assert first.normals()[:, 2].tolist() == [-4.0] * 4


def test_unique_rows_are_those_of_numpy():
    rows = np.random.default_rng(0).integers(-2, 2, (200, 3))
    found, which = unique_rows(rows)
    expected, inverse = np.unique(rows, axis=0, return_inverse=True)
    assert np.array_equal(found, expected)
    assert np.array_equal(which, inverse.reshape(-1))
    assert len(unique_rows(np.zeros((0, 3)))[0]) == 0


def test_a_written_mesh_is_read_back(tmp_path, open3d):
    mesh = joined(sheet(0.5, label=2), sheet(1.0, label=255))
    path = tmp_path / "küche.ply"
    mesh.write(path, COLORS)
    read = read_mesh(path)
    assert np.array_equal(read.vertices, mesh.vertices)
    assert np.array_equal(read.triangles, mesh.triangles)
    assert np.array_equal(read.labels, mesh.labels)
    colors = open3d.t.io.read_point_cloud(str(path)).point.colors.numpy()
    assert colors.tolist() == [[0, 0, 255]] * 4 + [[128, 128, 128]] * 4


PLY = """ply
format ascii 1.0
element vertex 3
property float x
property float y
property float z
{}element face 1
property list uchar int vertex_indices
end_header
0 0 0{}
1 0 0{}
0 1 0{}
3 0 1 2
"""


@pytest.mark.parametrize(("label", "value"), [("", ""), ("property ushort label\n", " 7")])
def test_labels_of_other_programs_are_not_classes(tmp_path, open3d, label, value):
    (tmp_path / "scene.ply").write_text(PLY.format(label, *[value] * 3))
    mesh = read_mesh(tmp_path / "scene.ply")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert mesh.labels is None


@pytest.mark.parametrize("content", ["", "ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "no mesh"])
@pytest.mark.parametrize("name", ["mesh.ply", "mesh.txt"])
def test_a_file_without_triangles_is_refused_in_one_line(tmp_path, capfd, open3d, content, name):
    (tmp_path / name).write_text(content)
    with pytest.raises(M2HError, match=f"{name}: not a triangle mesh that Open3D reads"):
        read_mesh(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1 0 0", "nan 0 0", "a vertex is NaN or infinite"),
        ("3 0 1 2", "3 0 1 9", "a face has a vertex that does not exist"),
        ("0 1 0", "2 0 0", "no face has an area"),
    ],
)
def test_a_damaged_mesh_is_one_line(tmp_path, open3d, old, new, words):
    (tmp_path / "mesh.ply").write_text(PLY.format("", "", "", "").replace(old, new))
    with pytest.raises(M2HError, match=rf"mesh\.ply: .*{words}"):
        read_mesh(tmp_path / "mesh.ply")


def test_a_missing_file_is_named(tmp_path, open3d):
    with pytest.raises(M2HError, match=r"nothing\.ply"):
        read_mesh(tmp_path / "nothing.ply")
