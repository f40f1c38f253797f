"""Test distances to the true surface, and which of its samples views observe."""

from __future__ import annotations

import numpy as np
import pytest

from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.surface import MeshDistance, NearestSamples, TrueSurface
from tests.scenes import AT_ORIGIN, CAMERA, joined, sheet, wall

pytestmark = pytest.mark.usefixtures("open3d")


def look(truth: TrueSurface, depth: np.ndarray, times: int = 3, **settings) -> np.ndarray:
    for _ in range(times):
        truth.observe(depth, CAMERA, AT_ORIGIN, **settings)
    return truth.points[truth.observed]


def test_distances_are_to_triangles_and_exact_far_from_the_origin():
    far = np.array([0.0, 0.0, 5000.0])
    surface = MeshDistance(SemanticMesh(sheet(0.0).vertices + far, sheet(0.0).triangles))
    points = np.array([[0.3, 0.1, 0.25], [0, 0, -0.001], [2, 0, 0], [4, 5, 0]]) + far
    assert surface(points) == pytest.approx([0.25, 0.001, 1.0, 5.0], abs=1e-6)
    assert surface(np.zeros((0, 3))).shape == (0,)
    assert np.isnan(MeshDistance(SemanticMesh.empty())(points)).all()


def test_nearest_neighbors():
    found = NearestSamples(np.array([[0, 0, 0], [1, 0, 0], [0, 3, 0.0]]))(np.array([[0.9, 0, 0], [0, 2, 0]]))
    assert found.chosen.tolist() == [1, 2]
    assert found.distances == pytest.approx([0.1, 1.0])


def test_samples_in_the_image_are_observed_after_three_views():
    truth = TrueSurface(sheet(2.0, half=3.0), spacing=0.05)
    assert len(look(truth, wall(2.0).depth, times=2)) == 0
    seen = look(truth, wall(2.0).depth, times=1)
    assert np.abs(seen[:, 0]).max() == pytest.approx(32 / 56 * 2, abs=0.05)
    assert np.abs(seen[:, 1]).max() == pytest.approx(24 / 56 * 2, abs=0.05)
    assert len(seen) == pytest.approx(64 * 48 * (2 / 56 / 0.05) ** 2, rel=0.02)


def test_hidden_samples_are_not_observed():
    truth = TrueSurface(joined(sheet(2.0, half=3.0), sheet(1.0, half=0.25)), spacing=0.04)
    depth = np.full((48, 64), 2.0, np.float32)
    depth[10:38, 18:46] = 1.0
    seen = look(truth, depth)
    front, back = seen[seen[:, 2] < 1.5], seen[seen[:, 2] > 1.5]
    assert len(front) == pytest.approx(0.5**2 / 0.04**2, rel=0.02)
    assert len(back) > 1000
    assert not (np.abs(back[:, :2]).max(axis=1) < 0.45).any()


@pytest.mark.parametrize("depth", [0.0, 2.1, 1.9, np.nan])
def test_samples_that_disagree_with_the_depth_or_have_none_are_not_observed(depth):
    assert len(look(TrueSurface(sheet(2.0), spacing=0.05), wall(depth).depth)) == 0


def test_samples_out_of_range_are_not_observed():
    truth = TrueSurface(sheet(2.0), spacing=0.05)
    assert len(look(truth, wall(2.0).depth, depth_range=(0.1, 1.9))) == 0
    assert len(look(truth, wall(2.0).depth, depth_range=(2.1, 3.0))) == 0


def test_a_slanted_surface_is_observed_although_depth_varies_within_a_pixel():
    slanted = SemanticMesh(sheet(0.0).vertices * [0.5, 0.5, 1] + [0, 0, 2], sheet(0.0).triangles)
    slanted.vertices[:, 2] += 2 * slanted.vertices[:, 0]
    depth = (2.0 / (1 - 2 * CAMERA.rays(48, 64)[..., 0])).astype(np.float32)
    truth = TrueSurface(slanted, spacing=0.05)
    look(truth, np.where(depth > 0, depth, 0).astype(np.float32))
    assert truth.observed.mean() > 0.98


def test_a_surface_is_read_with_its_labels(tmp_path):
    sheet(2.0, label=2).write(tmp_path / "surface.ply", np.zeros((3, 3), np.uint8))
    truth = TrueSurface.read(tmp_path / "surface.ply", spacing=0.1)
    assert len(truth.points) == pytest.approx(400, abs=1)
    assert set(truth.labels) == {2}
    assert truth.distances(np.array([[0, 0, 2.5]])) == pytest.approx([0.5])


def test_an_empty_surface_is_refused():
    with pytest.raises(M2HError, match="the true surface has no triangles"):
        TrueSurface(SemanticMesh.empty())
