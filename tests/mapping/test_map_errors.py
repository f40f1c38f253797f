"""Test the errors of maps whose distance from the true surface is known, their alignment and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from m2h_deploy.data.rooms.geometry import rotation_x, rotation_z
from m2h_deploy.mapping.align import find_alignment, is_plausible
from m2h_deploy.mapping.errors import CELL, SUMS, differences, figures, intervals, judge_map
from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.surface import VIEWS, TrueSurface
from tests.scenes import a_room, joined, sheet, surface_of

pytestmark = pytest.mark.usefixtures("open3d")


def seen(mesh: SemanticMesh, spacing: float = 0.02) -> TrueSurface:
    """Make a true surface that was observed everywhere."""
    truth = TrueSurface(mesh, spacing)
    truth.views[:] = VIEWS
    return truth


@pytest.fixture(scope="module")
def room() -> TrueSurface:
    return seen(surface_of(a_room(1)), spacing=0.06)


@pytest.mark.parametrize(("offset", "near"), [(0.0, 1.0), (0.03, 1.0), (0.08, 0.0)])
def test_a_plane_beside_the_true_one_has_its_offset_as_error(offset, near):
    errors = judge_map(sheet(2.0 + offset), seen(sheet(2.0)))
    assert [errors.mean, errors.median, errors.gap] == pytest.approx([offset] * 3, abs=1e-6)
    assert errors.sd == pytest.approx(0, abs=1e-4)
    assert errors.precision == errors.completeness == errors.fscore == near


def test_mean_and_deviation_of_two_planes():
    """A quarter of the area is off by 0.2 m."""
    mesh = joined(sheet(0.0, half=3**0.5), sheet(5.2, half=1.0))
    errors = judge_map(mesh, seen(joined(sheet(0.0, half=3**0.5), sheet(5.0, half=1.0))))
    assert errors.mean == pytest.approx(0.05, abs=1e-4)
    assert errors.sd == pytest.approx(0.2 * math.sqrt(0.25 * 0.75), abs=1e-4)
    assert errors.median == pytest.approx(0, abs=1e-6)
    assert errors.precision == errors.completeness == pytest.approx(0.75, abs=1e-3)


def test_half_a_map_is_accurate_but_not_complete():
    errors = judge_map(sheet(0.0, half=0.5), seen(sheet(0.0, half=1.0)))
    assert errors.mean < 1e-6
    assert errors.precision == 1
    assert errors.completeness == pytest.approx(1.1**2 / 4, abs=0.005)
    assert errors.fscore == pytest.approx(2 * errors.completeness / (1 + errors.completeness))


def test_what_was_not_observed_need_not_be_in_the_map_but_may():
    truth = seen(joined(sheet(0.0), sheet(1.0)))
    truth.views[truth.points[:, 2] > 0.5] = VIEWS - 1
    assert judge_map(sheet(0.0), truth).completeness == 1
    assert judge_map(joined(sheet(0.0), sheet(1.0)), truth).mean < 1e-6


def test_an_empty_map_has_no_errors_and_is_not_complete():
    for align in ("none", "se3", "sim3"):
        errors = judge_map(SemanticMesh.empty(), seen(sheet(0.0)), align=align)
        assert all(map(math.isnan, (errors.mean, errors.sd, errors.median, errors.precision, errors.gap, errors.miou)))
        assert errors.completeness == errors.fscore == 0
        assert math.isnan(intervals(errors.cells)["mean"][0])
        assert intervals(errors.cells)["completeness"] == (0, 0)


def test_without_observed_samples_a_map_has_accuracy_alone():
    errors = judge_map(sheet(0.03), TrueSurface(sheet(0.0)), align="se3")
    assert errors.mean == pytest.approx(0.03)
    assert math.isnan(errors.completeness) and math.isnan(errors.fscore) and math.isnan(errors.label_accuracy)


def test_labels_are_compared_with_those_of_the_nearest_observed_sample():
    """A hidden surface just behind the observed one has no say."""
    truth = seen(joined(sheet(0.0, label=1), sheet(0.01, label=7), sheet(4.0, label=2)))
    truth.views[truth.labels == 7] = 0
    errors = judge_map(joined(sheet(0.01, label=1), sheet(4.0, label=1)), truth)
    assert errors.label_accuracy == pytest.approx(0.5, abs=1e-3)
    assert errors.miou == pytest.approx((0.5 + 0) / 2, abs=1e-3)
    unlabeled = judge_map(joined(sheet(0.01, label=1), sheet(4.0, label=255)), truth)
    assert unlabeled.label_accuracy == unlabeled.miou == 1


def test_a_moved_map_gives_its_movement_back(room):
    moved = room.mesh.at(room.mesh.vertices + np.array([0.1, -0.05, 0.08]))
    before, after = (judge_map(moved, room, align=align, spacing=0.05) for align in ("none", "se3"))
    assert before.mean > 0.03
    assert after.mean < 0.001
    assert after.alignment.translation == pytest.approx([-0.1, 0.05, -0.08], abs=0.003)
    assert after.alignment.degrees < 0.05
    assert after.alignment.scale == 1


def test_a_turned_map_gives_its_rotation_back(room):
    center = room.mesh.vertices.mean(axis=0)
    turn = rotation_z(np.radians(2)) @ rotation_x(np.radians(1))
    turned = room.mesh.at((room.mesh.vertices - center) @ turn.T + center)
    errors = judge_map(turned, room, align="se3", spacing=0.05)
    assert errors.mean < 0.001
    assert errors.alignment.degrees == pytest.approx(math.sqrt(5), abs=0.05)


def test_a_scaled_map_gives_its_scale_back_under_similarity_alone(room):
    center = room.mesh.vertices.mean(axis=0)
    scaled = room.mesh.at((room.mesh.vertices - center) * 0.95 + center + [0.03, 0.02, 0.0])
    rigid, similar = (judge_map(scaled, room, align=align, spacing=0.05) for align in ("se3", "sim3"))
    assert rigid.mean > 0.04
    assert similar.mean < 0.001
    assert similar.alignment.scale == pytest.approx(1 / 0.95, abs=1e-3)
    assert similar.fscore > 0.999


def test_a_map_that_shrinks_to_a_point_ends_the_search():
    truth = TrueSurface(surface_of(a_room(0)), spacing=0.25)
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, (300, 3)) + truth.points.mean(axis=0)
    found = find_alignment(noise, truth.points, truth.normals, scaled=True)
    assert not is_plausible(found.scale)
    assert found.scale > 0.2


def test_cells_add_up_to_the_figures_and_are_where_the_points_are():
    errors = judge_map(sheet(0.03, label=3), seen(sheet(0.0, label=3)))
    assert errors.cells.sums.shape == (len(errors.cells.places), len(SUMS))
    total = figures(errors.cells.sums.sum(axis=0))
    assert total == {name: getattr(errors, name) for name in total}
    assert {tuple(place) for place in errors.cells.places} == {(x, y, 0) for x in range(-2, 2) for y in range(-2, 2)}
    assert errors.cells.sums[:, 0] == pytest.approx(CELL**2 / 0.02**2, rel=0.1)


def test_intervals_contain_the_figure_and_widen_with_the_spread_between_cells():
    truth = seen(sheet(0.0, half=2.0))
    even, uneven = sheet(0.02, half=2.0), sheet(0.02, half=2.0)
    uneven.vertices[:2, 2] = 0.1
    spans = []
    for mesh in (even, uneven):
        errors = judge_map(mesh, truth)
        low, high = intervals(errors.cells)["mean"]
        assert low <= errors.mean <= high
        spans.append(high - low)
    assert spans[0] < 1e-6
    assert spans[1] > 0.005


def test_differences_are_paired():
    """Both maps err more on one side, so that each is uncertain, but one is 1 cm worse everywhere."""
    truth = seen(sheet(0.0, half=2.0))
    first, second = sheet(0.01, half=2.0), sheet(0.02, half=2.0)
    for mesh in (first, second):
        mesh.vertices[:2, 2] += 0.05
    one, two = (judge_map(mesh, truth).cells for mesh in (first, second))
    value, (low, high) = differences(one, two)["mean"]
    assert value == pytest.approx(0.01, abs=3e-4)
    assert 0.008 < low <= value <= high < 0.012
    assert set(differences(one, one).values()) == {(0, (0, 0))}


def test_maps_of_different_places_are_compared_over_the_cells_of_both():
    truth = seen(joined(sheet(0.0, half=0.5, center=(0.5, 0.5)), sheet(0.0, half=0.5, center=(5.5, 0.5))))
    one, two = (judge_map(sheet(z, half=0.5, center=(x, 0.5)), truth).cells for x, z in ((0.5, 0.0), (5.5, 0.04)))
    found = differences(one, two)
    assert found["mean"][0] == pytest.approx(0.04)
    assert found["completeness"][0] == pytest.approx(0, abs=1e-3)
    low, high = found["completeness"][1]
    assert low < -0.3 and high > 0.3
