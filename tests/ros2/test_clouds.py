"""Test PointCloud2 messages, compressed images, 16-bit depth and ground labels of the node, without ROS."""

from __future__ import annotations

import array
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from m2h_perception import messages
from m2h_perception.calibration import View
from m2h_perception.clouds import Cloud, Clouds, Field, fill_cloud
from m2h_perception.diagnostics import identity
from m2h_perception.labels import ground_table
from m2h_perception.settings import Settings, defaults

from m2h_deploy import M2HError, load_bundle
from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.manifest import LabelMap
from m2h_deploy.data.classes import NYU40_CLASSES
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.point_cloud import PointCloud
from m2h_deploy.runtime.postprocess import Prediction
from tests.ros2.cloud_reader import color_of, read_points

ROOM = render_room(8, 3, 48, 65)
DEPTH = np.where(np.arange(65) == 6, np.float32(0), ROOM.depth)
PREDICTION = Prediction(DEPTH, ROOM.semantics, ROOM.normals, None)
FLOOR = np.arange(256) == NYU40_CLASSES.index("floor")
REMAP = np.arange(256, dtype=np.uint8)[::-1].copy()


def clouds(step: int = 1, **options: object) -> Clouds:
    made = Clouds(PointCloud(decimation=step, normals=True), **{"ground": FLOOR, **options})
    made.take(ROOM.image, PREDICTION, View(ROOM.intrinsics))
    return made


def message(cloud: Cloud) -> SimpleNamespace:
    return fill_cloud(SimpleNamespace(), cloud, "header", SimpleNamespace)


@pytest.mark.parametrize("step", [1, 3])
def test_an_organized_cloud_is_read_back_point_by_point(step):
    sent = message(clouds(step).all())
    assert (sent.header, sent.height, sent.width, sent.is_dense) == ("header", -(-48 // step), -(-65 // step), False)
    assert (sent.point_step, sent.row_step) == (32, 32 * sent.width)
    assert [field.name for field in sent.fields][:5] == ["x", "y", "z", "rgb", "label"]
    camera = ROOM.intrinsics
    for index, point in enumerate(read_points(sent)):
        row, column = index // sent.width * step, index % sent.width * step
        depth = float(DEPTH[row, column])
        if depth == 0:
            assert all(math.isnan(point[axis]) for axis in ("x", "y", "z", "normal_x"))
        else:
            assert point["z"] == depth
            assert point["x"] == pytest.approx((column - camera.cx) * depth / camera.fx, rel=1e-5, abs=1e-6)
            assert point["y"] == pytest.approx((row - camera.cy) * depth / camera.fy, rel=1e-5, abs=1e-6)
            normal = [point[f"normal_{axis}"] for axis in "xyz"]
            np.testing.assert_array_equal(normal, -ROOM.normals[row, column])
        assert color_of(point) == tuple(ROOM.image[row, column][::-1])
        assert point["label"] == ROOM.semantics[row, column]


def test_a_dense_cloud_has_only_finite_points():
    sent = message(clouds(dense=True).all())
    assert (sent.height, sent.width, sent.is_dense) == (1, 48 * 64, True)
    assert all(math.isfinite(value) for point in read_points(sent) for value in point.values())


def test_is_dense_says_whether_an_organized_cloud_is_complete():
    made = Clouds(PointCloud())
    made.take(ROOM.image, Prediction(ROOM.depth, ROOM.semantics, None, None), View(ROOM.intrinsics))
    assert message(made.all()).is_dense


@pytest.mark.parametrize("step", [1, 2])
def test_ground_and_obstacles_share_out_the_points_with_depth_by_class(step):
    made = clouds(step, remap=REMAP)
    ground, obstacles = (read_points(message(cloud)) for cloud in (made.ground(), made.obstacles()))
    labels = ROOM.semantics[::step, ::step][DEPTH[::step, ::step] > 0]
    floor = NYU40_CLASSES.index("floor")
    assert len(ground) == np.count_nonzero(labels == floor) > 0
    assert len(ground) + len(obstacles) == len(labels)
    # Labels of points are those that are published, after the remap.
    assert {point["label"] for point in ground} == {255 - floor}
    assert {point["label"] for point in obstacles} == {255 - label for label in set(labels) - {floor}}


def test_the_fields_are_pcl_s():
    fields = message(clouds().all()).fields
    assert [Field(**vars(field)) for field in fields] == [
        *(Field(name, 4 * place, 7) for place, name in enumerate(("x", "y", "z", "rgb"))),
        Field("label", 16, 6),
        *(Field(f"normal_{axis}", 20 + 4 * place, 7) for place, axis in enumerate("xyz")),
    ]


def test_an_empty_cloud_is_a_valid_message():
    made = Clouds(PointCloud(), ground=np.zeros(256, bool))
    made.take(ROOM.image, PREDICTION, View(ROOM.intrinsics))
    sent = message(made.ground())
    assert (sent.height, sent.width, sent.row_step, len(sent.data), sent.is_dense) == (1, 0, 0, 0, True)


def test_points_that_a_rectified_camera_does_not_see_have_no_position():
    outside = np.zeros(DEPTH.shape, bool)
    outside[:, :20] = True
    made = Clouds(PointCloud(), dense=True)
    made.take(ROOM.image, PREDICTION, View(ROOM.intrinsics, outside=outside))
    assert message(made.all()).width == 48 * 45


def table(*wanted: str | int, names: tuple[str, ...] = NYU40_CLASSES, remap: np.ndarray | None = None) -> set[int]:
    return set(np.flatnonzero(ground_table(wanted, names, remap)))


def test_ground_is_floor_and_floor_mat_unless_named_otherwise():
    floor, mat = (NYU40_CLASSES.index(name) for name in ("floor", "floor mat"))
    assert table() == {floor, mat}
    assert table("Floor ", "3") == {floor, 3}
    assert table(names=("road", "car")) == {0}
    # A label is as published, a name is the bundle's.
    remap = np.zeros(256, np.uint8)
    remap[[4, 9]] = 2
    assert table("2", "floor", remap=remap) == {4, 9, floor}


def test_a_class_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(M2HError, match=r"ground_labels: 'flor' is neither .* did you mean floor\?"):
        table("flor")
    with pytest.raises(M2HError, match="ground_labels: '256'"):
        table("256")
    with pytest.raises(M2HError, match="name its classes that are ground"):
        table(names=("car", "tree"))


@pytest.mark.parametrize(
    ("value", "expected"), [("", []), ("floor, floor mat", 2), (["floor", 3], 2), (5, 1), ("1,,2", 2)]
)
def test_ground_labels_are_a_list_or_separated_by_commas(value, expected):
    found = Settings(**{**defaults(), "bundle": "here", "ground_labels": value}).ground
    assert found == expected or len(found) == expected


def test_depth_in_millimeters_is_rounded_saturated_and_0_where_unknown():
    depth = np.array([[0.0004, 1.2346, 65.534, 65.6, 1000.0], [0.0, -1.0, np.nan, np.inf, 2.0]], np.float32)
    outside = np.zeros(depth.shape, bool)
    outside[1, 4] = True
    pixels = messages.depth_pixels(depth, encoding="16UC1", outside=outside)
    assert (pixels.encoding, pixels.step) == ("16UC1", 10)
    told = np.frombuffer(pixels.data, np.uint16).reshape(2, 5)
    assert told.tolist() == [[0, 1235, 65534, 65535, 65535], [0, 0, 0, 65535, 0]]
    scaled = messages.depth_pixels(depth[:1, 1:2], 2.0, "16UC1")
    assert list(np.frombuffer(scaled.data, np.uint16)) == [2469]


def test_depth_in_meters_is_nan_where_unknown_and_otherwise_untouched():
    depth = np.array([[0.0, 1.5, -1.0, 2.5]], np.float32)
    outside = np.array([[False, False, False, True]])
    told = np.frombuffer(messages.depth_pixels(depth, outside=outside).data, np.float32)
    np.testing.assert_array_equal(told, np.array([np.nan, 1.5, np.nan, np.nan], np.float32))
    assert messages.depth_pixels(ROOM.depth).data.tobytes() == ROOM.depth.tobytes()


def compressed(pixels: np.ndarray, suffix: str, text: str) -> SimpleNamespace:
    encoded = cv2.imencode(suffix, pixels)[1].tobytes()
    return SimpleNamespace(format=text, data=array.array("B", encoded))


@pytest.mark.parametrize("text", ["png", "bgr8; png compressed bgr8", "rgb8; png compressed bgr8", ""])
def test_a_png_is_decoded_without_loss_whatever_its_format_says(text):
    np.testing.assert_array_equal(messages.compressed_to_bgr(compressed(ROOM.image, ".png", text)), ROOM.image)


def test_a_png_whose_encoder_took_rgb_for_bgr_gets_its_colors_back():
    swapped = compressed(np.ascontiguousarray(ROOM.image[..., ::-1]), ".png", "rgb8; png compressed rgb8")
    np.testing.assert_array_equal(messages.compressed_to_bgr(swapped), ROOM.image)


@pytest.mark.parametrize("text", ["jpeg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"])
def test_a_jpeg_is_decoded_to_bgr(text):
    decoded = messages.compressed_to_bgr(compressed(ROOM.image, ".jpg", text))
    assert np.abs(decoded.astype(int) - ROOM.image).mean() < 6
    assert decoded.flags.c_contiguous


def test_gray_and_alpha_are_converted():
    gray = cv2.cvtColor(ROOM.image, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(
        messages.compressed_to_bgr(compressed(gray, ".png", "mono8; png compressed ")), np.dstack([gray] * 3)
    )
    alpha = cv2.cvtColor(ROOM.image, cv2.COLOR_BGR2BGRA)
    np.testing.assert_array_equal(messages.compressed_to_bgr(compressed(alpha, ".png", "png")), ROOM.image)


JPEG = compressed(ROOM.image, ".jpg", "jpeg").data


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (SimpleNamespace(format="jpeg", data=JPEG[: len(JPEG) // 2]), "truncated"),
        (SimpleNamespace(format="jpeg", data=array.array("B")), "cannot be decoded"),
        (SimpleNamespace(format="png", data=array.array("B", b"no image")), "cannot be decoded"),
        (compressed(ROOM.image.astype(np.uint16) * 256, ".png", "png"), "expected uint8"),
        (compressed(ROOM.image[..., 0].astype(np.uint16), ".png", "mono16; png compressed "), "expected uint8"),
        (SimpleNamespace(format="16UC1; compressedDepth png", data=JPEG), "is a depth image"),
    ],
)
def test_data_that_are_no_color_image_are_refused_in_one_line(sent, words):
    with pytest.raises(M2HError, match=words) as refusal:
        messages.compressed_to_bgr(sent, "/camera/compressed")
    assert "/camera/compressed" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_transport": "theora"}, "image_transport 'theora': choose raw or compressed"),
        ({"depth_encoding": "mono16"}, "depth_encoding 'mono16': choose 32FC1 or 16UC1"),
        ({"output_reliability": "yes"}, "choose reliable or best_effort"),
        ({"points_decimation": 0}, "points_decimation is 0: must be from 1 to 1000"),
        ({"rectify": True, "camera_info_topic": ""}, "camera_info_topic is empty: rectify needs it"),
        ({"ground_topic": "/g", "camera_info_topic": ""}, "camera_info_topic is empty: ground_topic needs it"),
    ],
)
def test_bad_parameters_of_inputs_and_outputs_are_refused(changes, words):
    with pytest.raises(M2HError, match=words):
        Settings(**{**defaults(), "bundle": "here", **changes})


def test_compressed_images_are_on_image_transport_s_topic():
    settings = {**defaults(), "bundle": "here", "image_transport": "compressed"}
    assert Settings(**settings).input_topic == "/camera/color/image_raw/compressed"
    assert Settings(**settings | {"image_topic": "/a/compressed"}).input_topic == "/a/compressed"
    assert Settings(**settings | {"image_transport": "raw"}).input_topic == "/camera/color/image_raw"


def test_a_label_remap_is_refused_and_a_depth_scale_warned_about_where_the_bundle_does_it_itself(tiny_bundle):
    settings = Settings(**{**defaults(), "bundle": "here", "label_remap": "remap.yaml", "depth_scale": 2.0})
    manifest = load_bundle(tiny_bundle).manifest
    assert settings.check_bundle(manifest) == []
    names = manifest.classes.names
    mapped = LabelMap(name="nyud20", network_classes=names, groups=tuple((index,) for index in range(len(names))))
    with pytest.raises(M2HError, match="label_remap: the bundle itself maps labels to nyud20"):
        settings.check_bundle(manifest.model_copy(update={"label_map": mapped}))
    calibrated = manifest.model_copy(update={"depth_calibration": DepthCalibration(scale=1.1)})
    (warning,) = settings.check_bundle(calibrated)
    assert "depth_scale 2 multiplies depth" in warning
    told = identity(calibrated, True, 2.0)
    assert (told["depth calibration"], told["depth_scale"], told["labels"]) == (
        "depth x 1.1",
        "2",
        "the network's",
    )
    assert identity(manifest.model_copy(update={"label_map": mapped}), True)["labels"] == "nyud20"
