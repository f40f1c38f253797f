"""Test point clouds, rectification and compressed images of the node over DDS: `make test-ros2`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from m2h_deploy import Runtime, load_bundle
from m2h_deploy.camera import Rectification
from m2h_deploy.data.classes import default_classes
from m2h_deploy.data.rooms.render import render_room, room_intrinsics
from m2h_deploy.label_spaces.read import load_label_space
from m2h_deploy.label_spaces.reduce import reduce_logits
from tests.engines.graphs import with_label_map
from tests.lenses import distort, lens_of
from tests.ros2.cloud_reader import color_of, read_points

pytestmark = pytest.mark.ros2

TOPICS = {f"{name}_topic": f"/test/{name}" for name in ("points", "ground", "obstacles")}
CAMERA = room_intrinsics(480, 640)
ROOM = render_room(11, 3, 480, 640).image

#: Classes that the random network of the tests predicts.
GROUND = "shower curtain, shelves, pillow"

#: Parameters of a node that publishes all clouds.
ALL = {**TOPICS, "points_normals": True, "normals_topic": "/test/normals", "ground_labels": f'"{GROUND}"'}


@dataclass(frozen=True)
class Heard:
    """What a peer heard of one node."""

    result: dict[str, Any]
    pixels: dict[str, np.ndarray]
    clouds: dict[str, SimpleNamespace]
    exit_code: int
    log: str

    def image(self, topic: str) -> np.ndarray:
        return self.pixels[f"{topic} {self.result['stamp']}"]

    def message(self, topic: str) -> dict[str, Any]:
        return next(
            m for m in self.result["heard messages"] if (m["topic"], m["stamp"]) == (topic, self.result["stamp"])
        )


def run(ros: Any, scenario: str, bundle: Any, **parameters: object) -> Heard:
    with ros.node(bundle, **parameters) as node:
        result = ros.peer(scenario, *([bundle] if scenario == "clouds" else []))
        exit_code = ros.interrupt(node)
    clouds = {}
    for name, facts in json.loads((ros.folder / "points.json").read_text()).items():
        fields = [SimpleNamespace(**field) for field in facts.pop("fields")]
        clouds[name] = SimpleNamespace(**facts, fields=fields, data=(ros.folder / f"{name}.bytes").read_bytes())
    with np.load(ros.folder / f"{scenario}.npz") as arrays:
        return Heard(result, dict(arrays), clouds, exit_code, ros.log())


@pytest.fixture(scope="module")
def plain(ros, tiny_bundle) -> Heard:
    """Run a node that publishes all clouds of an undistorted camera."""
    return run(ros, "clouds", tiny_bundle, rectify=False, **ALL)


@pytest.fixture(scope="module")
def rectified(ros, tiny_bundle) -> Heard:
    """Run a node that takes compressed images of a distorted camera."""
    parameters = {"rectify": True, "image_transport": "compressed", "depth_encoding": "16UC1"}
    extra = {"points_dense": True, "points_decimation": 2, "ground_labels": f'"{GROUND}"'}
    return run(ros, "distorted", tiny_bundle, **parameters, **TOPICS, **extra)


def test_clouds_have_the_header_of_their_image(plain):
    assert plain.result["answered"]
    for cloud in plain.clouds.values():
        assert (cloud.stamp, cloud.frame_id) == (plain.result["stamp"], "camera_optical")


def test_every_field_of_the_organized_cloud_is_read_by_the_message_definition(plain):
    cloud = plain.clouds["points"]
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (480, 640, 32, 32 * 640)
    depth, labels, normals = (plain.image(name) for name in ("depth", "labels", "normals"))
    for place, point in enumerate(read_points(cloud, 997)):
        row, column = divmod(997 * place, 640)
        assert point["z"] == depth[row, column]
        assert point["x"] == pytest.approx((column - CAMERA.cx) * point["z"] / CAMERA.fx, rel=1e-5, abs=1e-6)
        assert point["y"] == pytest.approx((row - CAMERA.cy) * point["z"] / CAMERA.fy, rel=1e-5, abs=1e-6)
        assert color_of(point) == tuple(ROOM[row, column][::-1])
        assert point["label"] == labels[row, column]
        np.testing.assert_array_equal([point[f"normal_{axis}"] for axis in "xyz"], -normals[row, column])


def test_ground_and_obstacles_are_dense_and_split_by_class(plain, tiny_bundle):
    names = load_bundle(tiny_bundle).manifest.classes.names
    ground = [names.index(name) for name in GROUND.split(", ")]
    labels = plain.image("labels")
    expected = np.count_nonzero(np.isin(labels, ground))
    assert 0 < expected < labels.size / 2
    sizes = {name: cloud.width for name, cloud in plain.clouds.items() if name != "points"}
    assert sizes == {"ground": expected, "obstacles": labels.size - expected}
    for name, inside in (("ground", True), ("obstacles", False)):
        cloud = plain.clouds[name]
        assert (cloud.height, cloud.is_dense) == (1, True)
        for point in read_points(cloud, 499):
            assert (point["label"] in ground) == inside
            assert all(math.isfinite(value) for key, value in point.items() if key != "rgb")


def test_depth_and_labels_are_those_of_the_runtime_in_every_bit(plain):
    assert plain.result["same"]


def test_points_wait_for_camera_info_and_diagnostics_say_so(plain):
    assert "no points: no CameraInfo on /camera/color/camera_info" in plain.result["without"]["message"]
    assert plain.result["status"]["values"]["depth calibration"] == "none"
    assert plain.exit_code == 0 and "Traceback" not in plain.log


def test_mapped_labels_are_those_of_the_logits_reduced_outside_on_every_pixel(ros, tiny_onnx, tiny_bundle, tmp_path):
    from engines import build_bundle

    classes, label_map = load_label_space("nyud20").resolve(default_classes(41))
    onnx.save(with_label_map(onnx.load(tiny_onnx), classes, label_map), tmp_path / "mapped.onnx")
    build_bundle(tmp_path / "mapped.onnx", tmp_path / "mapped")
    heard = run(ros, "clouds", tmp_path / "mapped", rectify=False, **{**ALL, "ground_labels": "appliance"})
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        reduced = reduce_logits(runtime.backend.run(runtime.preprocess(ROOM))["semantics"], label_map)[0]
    expected = cv2.resize(reduced.argmax(0).astype(np.uint8), (640, 480), interpolation=cv2.INTER_NEAREST)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(heard.image("labels"), expected)


def test_rectifying_an_undistorted_camera_changes_no_bit(ros, plain, tiny_bundle):
    other = run(ros, "clouds", tiny_bundle, rectify=True, **ALL)
    for topic in ("depth", "labels", "normals", "synced"):
        np.testing.assert_array_equal(other.image(topic), plain.image(topic))
    assert {name: cloud.data for name, cloud in other.clouds.items()} == {
        name: cloud.data for name, cloud in plain.clouds.items()
    }
    assert other.message("info") == plain.message("info")


def test_before_camera_info_images_are_counted_and_dropped(rectified):
    waiting = rectified.result["waiting"]
    assert int(waiting["values"]["without CameraInfo"]) >= 1
    assert waiting["values"]["published"] == "0"
    assert "images are dropped until CameraInfo arrives on /camera/color/camera_info" in waiting["message"]


def test_the_synced_image_and_camera_info_are_the_rectified_ones(rectified):
    assert rectified.result["answered"]
    synced, info = rectified.message("synced"), rectified.message("info")
    assert (synced["encoding"], synced["frame_id"], info["frame_id"]) == ("bgr8", "camera_optical", "camera_optical")
    expected = Rectification(lens_of("plumb_bob", 480, 640))(distort(ROOM, lens_of("plumb_bob", 480, 640)))
    np.testing.assert_array_equal(rectified.image("synced").reshape(480, 640, 3), expected)
    np.testing.assert_allclose(info["k"], [CAMERA.fx, 0, CAMERA.cx, 0, CAMERA.fy, CAMERA.cy, 0, 0, 1])
    assert info["d"] == [0.0] * 5


def test_outputs_and_points_are_those_of_the_rectified_image(rectified, tiny_bundle):
    image = rectified.image("synced").reshape(480, 640, 3)
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        prediction = runtime(image)
    depth = rectified.image("depth")
    assert depth.dtype == np.uint16 and rectified.message("depth")["encoding"] == "16UC1"
    np.testing.assert_allclose(depth / 1000, prediction.depth, atol=2e-3)
    assert np.mean(rectified.image("labels") == prediction.semantics) > 0.999
    cloud = rectified.clouds["points"]
    assert (cloud.height, cloud.width, cloud.point_step, cloud.is_dense) == (1, 240 * 320, 20, True)
    for place, point in enumerate(read_points(cloud, 499)):
        row, column = (2 * index for index in divmod(499 * place, 320))
        assert point["z"] == pytest.approx(prediction.depth[row, column], abs=2e-3)
        assert point["x"] == pytest.approx((column - CAMERA.cx) * point["z"] / CAMERA.fx, rel=1e-4, abs=1e-5)
        assert point["y"] == pytest.approx((row - CAMERA.cy) * point["z"] / CAMERA.fy, rel=1e-4, abs=1e-5)
        assert color_of(point) == tuple(image[row, column][::-1])


def test_a_damaged_compressed_image_is_one_counted_frame(rectified):
    assert int(rectified.result["damaged"]["values"]["unreadable"]) >= 1
    assert "/camera/color/image_raw/compressed: the message" in rectified.result["damaged"]["message"]


def test_a_camera_that_cannot_be_rectified_is_named_in_diagnostics(rectified):
    assert "CameraInfo on /camera/color/camera_info: distortion model 'fov'" in rectified.result["refused"]["message"]
    assert rectified.exit_code == 0 and "Traceback" not in rectified.log


def test_depth_scale_and_a_calibration_are_a_warning_and_diagnostics_name_both(ros, tiny_bundle, tmp_path):
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["depth_calibration"] = {"scale": 1.25, "offset": -0.5}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with ros.node(copy, depth_scale=2) as node:
        result = ros.peer("topics")
        assert ros.interrupt(node) == 0, ros.log()
    assert ros.log().count("depth_scale 2 multiplies depth that the bundle's calibration has corrected") == 1
    values = result["status"]["values"]
    assert (values["depth calibration"], values["depth_scale"]) == ("depth x 1.25 - 0.5 m", "2")


def test_a_class_that_the_bundle_lacks_gives_one_line_and_exit_code_2(ros, tiny_bundle):
    with ros.node(tiny_bundle, ready=False, **TOPICS, ground_labels="flor") as node:
        assert ros.wait(node) == 2, ros.log()
    assert "'flor' is neither a class nor a label" in ros.log().splitlines()[-1]
    assert "Traceback" not in ros.log()


@pytest.mark.slow
def test_clouds_at_10_hz_grow_no_memory(ros, tiny_bundle):
    with ros.node(tiny_bundle, **TOPICS, ground_labels=f'"{GROUND}"') as node:
        result = ros.peer("soak_clouds", node.pid, 180)
        assert ros.interrupt(node) == 0, ros.log()
    assert result["heard"] > 0 and result["wrong"] == 0
    parts = np.array_split(np.array(result["memory"][60:], float), 6)
    growth = np.diff([np.median(part) for part in parts])
    published = int(result["last"]["values"]["published"]) * len(parts[0]) / len(result["memory"])
    assert growth.min() < 640 * 480 * 20 * published / 50, "at least one cloud in 50 is kept"
