"""Test point clouds against a reference that is written point by point."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from m2h_deploy import M2HError
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.point_cloud import PointCloud, colors, point_dtype, positions
from m2h_deploy.runtime.postprocess import Prediction

ROOM = render_room(4, 2, 60, 81)
PREDICTION = Prediction(ROOM.depth, ROOM.semantics, ROOM.normals, None)


def with_depth(depth: np.ndarray) -> Prediction:
    return Prediction(depth.astype(np.float32), PREDICTION.semantics, PREDICTION.normals, None)


@pytest.mark.parametrize("step", [1, 3])
def test_every_point_is_the_pixel_s_depth_along_its_ray_with_its_color_label_and_normal(step):
    camera = ROOM.intrinsics
    points = PointCloud(decimation=step, normals=True)(ROOM.image, PREDICTION, camera)
    assert points.cloud.shape == (-(-60 // step), -(-81 // step))
    for row in range(0, 60, 7 * step):
        for column in range(0, 81, 5 * step):
            x, y, z, rgb, label, *normal = points.cloud[row // step, column // step]
            depth = float(ROOM.depth[row, column])
            assert z == ROOM.depth[row, column]
            assert x == pytest.approx((column - camera.cx) * depth / camera.fx, rel=1e-6, abs=1e-7)
            assert y == pytest.approx((row - camera.cy) * depth / camera.fy, rel=1e-6, abs=1e-7)
            blue, green, red = map(int, ROOM.image[row, column])
            assert struct.unpack("I", struct.pack("f", rgb))[0] == red << 16 | green << 8 | blue
            assert label == ROOM.semantics[row, column]
            np.testing.assert_array_equal(normal, -ROOM.normals[row, column])


def test_the_layout_is_pcl_s_without_padding():
    full = point_dtype(labels=True, normals=True)
    assert {name: field[1] for name, field in full.fields.items()} == {
        **{"x": 0, "y": 4, "z": 8, "rgb": 12, "label": 16},
        **{"normal_x": 20, "normal_y": 24, "normal_z": 28},
    }
    assert (full.itemsize, point_dtype(labels=False).itemsize) == (32, 16)
    assert point_dtype()["label"] == np.uint32


def test_normals_agree_with_the_plane_through_the_points():
    """A floor's normal points up, which is -y, and points towards the camera like every normal."""
    points = PointCloud(normals=True)(ROOM.image, PREDICTION, ROOM.intrinsics).cloud
    xyz = positions(points).astype(np.float64)
    across = np.cross(xyz[1:-1, 2:] - xyz[1:-1, :-2], xyz[2:, 1:-1] - xyz[:-2, 1:-1])
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    across *= np.where((across * xyz[1:-1, 1:-1]).sum(-1, keepdims=True) > 0, -1, 1)
    normals = np.stack([points[f"normal_{axis}"] for axis in "xyz"], -1)[1:-1, 1:-1]
    assert np.median((across * normals).sum(-1)) > 0.999
    floor = points["label"][1:-1, 1:-1] == 1
    assert floor.any() and (normals[floor][:, 1] < -0.5).mean() > 0.99


def test_unknown_depth_is_nan_in_an_organized_cloud_and_absent_from_a_dense_one():
    depth = ROOM.depth.copy()
    unknown = [(0, 0), (5, 6), (7, 8), (9, 10), (11, 12)]
    for place, value in zip(unknown, (0.0, -1.0, np.nan, np.inf, 2.0), strict=True):
        depth[place] = value
    outside = np.zeros(depth.shape, bool)
    outside[11, 12] = True
    points = PointCloud(normals=True)(ROOM.image, with_depth(depth), ROOM.intrinsics, outside=outside)
    missing = np.argwhere(~points.valid)
    assert [tuple(place) for place in missing] == unknown
    for name in ("x", "y", "z", "normal_x", "normal_y", "normal_z"):
        assert [tuple(place) for place in np.argwhere(np.isnan(points.cloud[name]))] == unknown
    dense = points.dense()
    assert dense.shape == (60 * 81 - len(unknown),)
    assert all(np.isfinite(dense[name]).all() for name in ("x", "y", "z", "normal_x"))
    np.testing.assert_array_equal(dense, points.cloud[points.valid])


def test_the_scale_multiplies_positions_and_a_selection_splits_the_points():
    plain, twice = (PointCloud(scale=scale)(ROOM.image, PREDICTION, ROOM.intrinsics) for scale in (1.0, 2.0))
    np.testing.assert_allclose(positions(twice.cloud), 2 * positions(plain.cloud), rtol=1e-6)
    floor = plain.cloud["label"] == 1
    ground, obstacles = plain.dense(floor), plain.dense(~floor)
    assert len(ground) + len(obstacles) == plain.valid.sum() and len(ground) and len(obstacles)
    assert set(ground["label"]) == {1} and 1 not in obstacles["label"]
    np.testing.assert_array_equal(colors(ground), ROOM.image[floor][:, ::-1])


def test_other_labels_replace_those_of_the_prediction():
    labels = np.full(ROOM.depth.shape, 200, np.uint8)
    points = PointCloud()(ROOM.image, PREDICTION, ROOM.intrinsics, labels=labels)
    assert set(points.cloud["label"].ravel()) == {200}


def test_another_camera_and_size_are_followed():
    project = PointCloud()
    first = project(ROOM.image, PREDICTION, ROOM.intrinsics).cloud.copy()
    wide = Intrinsics(ROOM.intrinsics.fx / 2, ROOM.intrinsics.fy, ROOM.intrinsics.cx, ROOM.intrinsics.cy)
    np.testing.assert_allclose(project(ROOM.image, PREDICTION, wide).cloud["x"], 2 * first["x"], rtol=1e-6)
    small = render_room(4, 2, 30, 40)
    other = Prediction(small.depth, small.semantics, None, None)
    assert project(small.image, other, small.intrinsics).cloud.shape == (30, 40)


def test_a_projection_allocates_no_memory_after_the_first():
    project = PointCloud(normals=True)
    project(ROOM.image, PREDICTION, ROOM.intrinsics)
    tracemalloc.start()
    project(ROOM.image, PREDICTION, ROOM.intrinsics)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # NumPy casts in pieces of 8192 elements.
    assert peak < 60 * 81 * project.dtype.itemsize / 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prediction": Prediction(None, None, None, None)}, "has no depth"),
        ({"prediction": Prediction(ROOM.depth, None, ROOM.normals, None)}, "has no semantics"),
        ({"prediction": Prediction(ROOM.depth, ROOM.semantics, None, None)}, "has no normals"),
        ({"image": ROOM.image[:30, :40]}, "depth is 81x60 and the image 40x30"),
    ],
)
def test_a_prediction_that_does_not_fit_is_refused_in_one_line(changes, words):
    arguments = {"image": ROOM.image, "prediction": PREDICTION, "camera": ROOM.intrinsics, **changes}
    with pytest.raises(M2HError, match=words):
        PointCloud(normals=True)(**arguments)


@pytest.mark.parametrize("decimation", [0, -1, 1001])
def test_a_decimation_out_of_range_is_refused(decimation):
    with pytest.raises(M2HError, match="decimation"):
        PointCloud(decimation=decimation)
