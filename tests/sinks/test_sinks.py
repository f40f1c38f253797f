"""Test that pictures, videos and recordings show the predictions at the right places."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Prediction
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.camera import intrinsics_of_view, parse_intrinsics
from m2h_deploy.data.frame import Frame
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.parity.pictures import draw_worst
from m2h_deploy.sinks.rerun import RerunLog, point_cloud
from m2h_deploy.sinks.screen import Panes, VideoFile
from m2h_deploy.visualize.draw import draw_panes, draw_prediction


@pytest.fixture(scope="module")
def room():
    return render_room(0, 1, height=120, width=160)


@pytest.fixture(scope="module")
def prediction(room):
    labels = np.where(room.semantics == 255, 0, room.semantics + 1).astype(np.uint8)
    return Prediction(room.depth, labels, room.normals, room.edges.astype(np.float32), {"inference": 12.5})


@pytest.fixture(scope="module")
def classes(tiny_bundle):
    return load_bundle(tiny_bundle).manifest.classes


def test_the_size_of_the_panes_depends_on_the_image_alone(room, prediction, classes):
    whole = draw_panes(room.image, prediction, classes)
    assert whole.shape[0] % 2 == whole.shape[1] % 2 == 0
    parts = [
        Prediction(None, None, None, None),
        Prediction(prediction.depth, None, None, None),
        Prediction(cv2.resize(prediction.depth, (32, 24)), None, None, prediction.edges),
    ]
    assert {draw_panes(room.image, part, classes).shape for part in parts} == {whole.shape}


def test_tasks_are_drawn_in_their_colors(room, prediction, classes):
    picture = draw_panes(room.image, prediction, classes, pane_height=120)
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    normals = picture[height + 34 : height + 34 + 120, 0:160]
    expected = np.rint((prediction.normals[:, :, ::-1] + 1) * 127.5)
    assert np.abs(normals.astype(float) - expected).mean() < 2
    edges = picture[height + 34 : height + 34 + 120, width : width + 160].astype(int)
    lit = edges.sum(axis=2)
    assert lit[prediction.edges > 0.5].mean() > 2 * lit[prediction.edges < 0.5].mean()


def test_frames_of_unusual_shape_and_content_are_drawn(classes):
    """Frames that are very narrow, without depth, or with labels beyond the list."""
    for height, width in ((16, 16), (16, 200), (200, 16)):
        image = np.zeros((height, width, 3), np.uint8)
        nothing = Prediction(
            np.zeros((height, width), np.float32),
            np.full((height, width), 250, np.uint8),
            np.zeros((height, width, 3), np.float32),
            np.full((height, width), np.nan, np.float32),
        )
        assert draw_prediction(image, nothing, classes).dtype == np.uint8
        assert draw_panes(image, nothing, classes).dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(16, 16384), (16384, 16), (16, 32766), (300, 301)])
def test_the_size_of_a_picture_is_bounded_for_any_shape(height, width, classes):
    image = np.full((height, width, 3), 90, np.uint8)
    plain = Prediction(
        np.ones((height, width), np.float32),
        np.full((height, width), 3, np.uint8),
        np.ones((height, width, 3), np.float32),
        np.ones((height, width), np.float32),
    )
    for picture in (draw_prediction(image, plain, classes), draw_panes(image, plain, classes)):
        assert picture.shape[0] <= 1000 and picture.shape[1] <= 5000
    worst = draw_worst("depth", Frame(image, "strip"), plain, plain, 0.0, classes)
    for content in worst.pictures.values():
        shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert shown.shape[0] <= 1440 and shown.shape[1] <= 360


@pytest.mark.parametrize("name", ["12:30:00.mp4", "a%d.mp4", "-i.mp4", "two words.mp4", "房間.mp4", "x" * 251 + ".mp4"])
def test_a_video_of_any_name_is_written(name, room, prediction, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = VideoFile(name, classes)
    video.add(room, prediction)
    video.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert cv2.VideoCapture(str(tmp_path / name)).read()[0]


def test_the_colors_of_depth_do_not_flicker(room, prediction, classes):
    panes = Panes(classes)
    first = panes.draw(room.image, prediction)
    nearer = Prediction(prediction.depth / 2, None, None, None)
    panes.draw(room.image, nearer)
    near, far = panes._span
    assert far > 0.85 * np.percentile(prediction.depth, 98)
    assert panes.draw(cv2.rotate(room.image, cv2.ROTATE_90_CLOCKWISE), nearer).shape == first.shape
    assert near > 0


def test_points_lie_on_the_surfaces_of_the_room(room):
    camera = room.intrinsics
    points, colors = point_cloud(room.image, room.depth, camera)
    assert len(points) == len(colors) == np.count_nonzero(room.depth)
    x = points[:, 0] / points[:, 2] * camera.fx + camera.cx
    y = points[:, 1] / points[:, 2] * camera.fy + camera.cy
    rows, columns = np.rint(y).astype(int), np.rint(x).astype(int)
    np.testing.assert_allclose(points[:, 2], room.depth[rows, columns], rtol=1e-5)
    np.testing.assert_array_equal(colors, room.image[rows, columns][:, ::-1])


def test_a_camera_is_given_by_its_field_of_view_or_its_intrinsics():
    camera = intrinsics_of_view(90, 480, 640)
    assert (camera.fx, camera.cx, camera.cy) == (pytest.approx(320), 319.5, 239.5)
    assert parse_intrinsics("518.9, 519.5,325.6,253.7").fy == 519.5
    for wrong in ("", "1,2,3", "a,b,c,d", "0,1,2,3", "nan,1,2,3", "1,2,3,4,5"):
        with pytest.raises(M2HError):
            parse_intrinsics(wrong)
    for wrong in (0, 180, -5, float("nan")):
        with pytest.raises(M2HError):
            intrinsics_of_view(wrong, 480, 640)


def test_a_recording_is_read_back(room, prediction, classes, tmp_path):
    if importlib.util.find_spec("rerun") is None:
        pytest.skip("rerun-sdk is not installed")
    log = RerunLog(tmp_path / "r.rrd", classes, (0.001, 10), intrinsics=room.intrinsics)
    log.add(room, prediction)
    log.add(room, Prediction(None, prediction.semantics, None, None))
    log.close()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.rrd"]
    command = [sys.executable, "-m", "rerun_cli", "rrd"]
    subprocess.run([*command, "verify", tmp_path / "r.rrd"], check=True, capture_output=True)
    printed = subprocess.run([*command, "print", tmp_path / "r.rrd"], check=True, capture_output=True, text=True).stdout
    for entity in ("/camera", "/camera/image", "/camera/depth", "/camera/labels", "/camera/normals", "/camera/edges"):
        assert f" - {entity} - " in printed, entity
    for entity in ("/points", "/latency/inference", "/latency/total", "/rate/frames_per_second", "/viewport"):
        assert f" - {entity} - " in printed, entity
    assert "AnnotationContext:context" in printed


def test_a_video_without_a_frame_leaves_no_file(classes, tmp_path):
    video = VideoFile(tmp_path / "v.mp4", classes)
    video.close()
    assert list(tmp_path.iterdir()) == []
