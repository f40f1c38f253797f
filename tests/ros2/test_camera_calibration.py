"""Test the node's calibration: CameraInfo, rectification and the views of images, without ROS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from m2h_perception.calibration import Calibration, View, lens_of, rectified_intrinsics
from m2h_perception.camera import Camera
from m2h_perception.temporal import Temporal

from m2h_deploy import M2HError
from m2h_deploy.camera import Rectification
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.render import render_room, room_intrinsics
from m2h_deploy.temporal.filter import TemporalFilter
from tests.lenses import COEFFICIENTS
from tests.lenses import lens_of as made_lens

ROOM = render_room(7, 0, 120, 160)
PINHOLE = room_intrinsics(120, 160)
NARROW = Intrinsics(PINHOLE.fx * 1.2, PINHOLE.fy * 1.2, PINHOLE.cx, PINHOLE.cy)


def camera_info(model: str = "plumb_bob", **changes: object) -> SimpleNamespace:
    """Make a CameraInfo of `PINHOLE`, whose rectified camera is `NARROW`."""
    k = [PINHOLE.fx, 0.0, PINHOLE.cx, 0.0, PINHOLE.fy, PINHOLE.cy, 0.0, 0.0, 1.0]
    p = [NARROW.fx, 0.0, NARROW.cx, 0.0, 0.0, NARROW.fy, NARROW.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    facts = {"width": 160, "height": 120, "distortion_model": model, "d": list(COEFFICIENTS.get(model, (0.1,) * 4))}
    facts |= {"k": k, "p": p, "r": [1.0, 0, 0, 0, 1, 0, 0, 0, 1], "binning_x": 0, "binning_y": 0, "roi": roi}
    return SimpleNamespace(**{**facts, **changes})


def calibration(info: SimpleNamespace | None, *, rectify: bool = True) -> Calibration:
    made = Calibration("/info", rectify=rectify)
    if info is not None:
        made.put(info)
    return made


@pytest.mark.parametrize("model", list(COEFFICIENTS))
def test_an_image_is_rectified_by_k_d_and_p_and_its_camera_info_describes_it(model):
    info = camera_info(model)
    image, view = calibration(info).see(ROOM.image)
    expected = Rectification(lens_of(info, info))
    np.testing.assert_array_equal(image, expected(ROOM.image))
    assert not np.array_equal(image, ROOM.image)
    assert view.intrinsics == NARROW == rectified_intrinsics(info, info)
    told = view.info
    assert (told.width, told.height, list(told.d), told.distortion_model) == (160, 120, [0.0] * 5, "plumb_bob")
    assert told.k == [NARROW.fx, 0.0, NARROW.cx, 0.0, NARROW.fy, NARROW.cy, 0.0, 0.0, 1.0]
    assert told.p == info.p and told.r == [1.0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert any(info.d), "the camera's own message must not change"


def test_an_undistorted_camera_gives_the_very_image_and_its_own_camera_info():
    for d in ([], [0.0] * 5):
        image, view = calibration(camera_info(d=d)).see(ROOM.image)
        assert image is ROOM.image
        assert view == View(PINHOLE)


def test_maps_are_computed_once_and_again_for_another_calibration_or_size(monkeypatch):
    made = []
    monkeypatch.setattr(
        "m2h_perception.calibration.Rectification", lambda lens: made.append(lens) or Rectification(lens)
    )
    camera = calibration(camera_info())
    for info in (camera_info(), camera_info(), camera_info(d=[0.1] * 5), camera_info("equidistant")):
        camera.put(info)
        camera.see(ROOM.image)
        camera.see(ROOM.image)
    assert [lens.coefficients[0] for lens in made] == [-0.28, 0.1, -0.02]
    camera.see(np.ascontiguousarray(ROOM.image[::2, ::2]))
    assert (made[-1].width, made[-1].height) == (80, 60)


def test_binned_images_are_rectified_with_a_scaled_calibration():
    info = camera_info(binning_x=2, binning_y=2)
    _, view = calibration(info).see(np.ascontiguousarray(ROOM.image[::2, ::2]))
    assert view.intrinsics == NARROW.scaled(60, 80, 120, 160)
    assert (view.info.width, view.info.height) == (80, 60)


def test_empty_p_and_r_are_k_and_no_rotation_and_a_baseline_is_kept():
    _, view = calibration(camera_info(p=[0.0] * 12, r=[0.0] * 9)).see(ROOM.image)
    assert view.intrinsics == PINHOLE
    p = camera_info().p
    p[3] = -7.5
    assert calibration(camera_info(p=p)).see(ROOM.image)[1].info.p == p


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distortion_model": "fov", "d": [0.9]}, "CameraInfo on /info: distortion model 'fov' is not known"),
        ({"d": [0.1] * 7}, "plumb_bob has 4 or 5 coefficients, not 7"),
        ({"k": [0.0] * 9}, "not calibrated"),
        ({"height": 90}, "not the same aspect ratio"),
        (
            {"roi": SimpleNamespace(x_offset=8, y_offset=4, width=80, height=60)},
            "region of interest (80x60 at 8, 4), which is not supported",
        ),
    ],
)
def test_a_camera_that_cannot_be_rectified_is_refused_in_one_line(changes, words):
    with pytest.raises(M2HError) as refusal:
        calibration(camera_info(**changes)).see(ROOM.image)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_without_camera_info_rectification_fails_and_a_plain_image_has_a_reason():
    with pytest.raises(M2HError, match="no CameraInfo on /info"):
        calibration(None).see(ROOM.image)
    image, view = calibration(None, rectify=False).see(ROOM.image)
    assert image is ROOM.image and view == View(reason="no CameraInfo on /info")


def test_without_rectification_the_view_is_k_and_says_that_distortion_is_ignored():
    image, view = calibration(camera_info(), rectify=False).see(ROOM.image)
    assert image is ROOM.image and view == View(PINHOLE, distorted=True)
    cropped = calibration(camera_info(height=90), rectify=False).see(ROOM.image)[1]
    assert cropped.intrinsics is None and "aspect ratio" in cropped.reason


def test_frames_of_the_source_carry_their_rectified_pixels_and_view():
    frames: Camera = Camera(lambda message: message.pixels, capacity=3, see=calibration(camera_info()).see)
    for pixels in (ROOM.image, ROOM.image[:90], ROOM.image):
        frames.put(SimpleNamespace(header=None, pixels=np.ascontiguousarray(pixels)))
    items = frames.source().read()
    first, refused, third = next(items), next(items), next(items)
    assert isinstance(refused, M2HError)
    assert Camera.view_of(first.image).intrinsics == NARROW
    np.testing.assert_array_equal(first.image, third.image)
    np.testing.assert_array_equal(first.image, calibration(camera_info()).see(ROOM.image)[0])


def test_the_temporal_filter_takes_the_rectified_camera_and_does_not_warn_of_distortion():
    warnings: list[str] = []
    poses = SimpleNamespace(at=lambda stamp, frame: np.eye(4))
    temporal = Temporal(
        TemporalFilter(), poses, source="test", camera_info_topic="/info", warn=warnings.append, rectified=True
    )
    temporal.on_camera_info(camera_info())
    header = SimpleNamespace(stamp=SimpleNamespace(sec=5, nanosec=0), frame_id="camera")
    temporal.locate(SimpleNamespace(header=header, width=160, height=120))
    assert temporal.filter.intrinsics == NARROW
    assert warnings == []


def test_the_lens_of_camera_info_is_the_tests_lens():
    expected = made_lens("plumb_bob", 120, 160)
    found = lens_of(camera_info(p=[0.0] * 12), camera_info())
    assert (found.camera, found.coefficients, found.model) == (
        expected.camera,
        expected.coefficients,
        expected.model,
    )
