"""Test rectification: images of distorted lenses become those of a pinhole camera."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Runtime
from m2h_deploy.camera import Lens, Rectification
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.point_cloud import PointCloud, positions
from m2h_deploy.runtime.postprocess import Prediction
from tests.lenses import COEFFICIENTS, distort, lens_of

ROOM = render_room(6, 1)


def inner(array: np.ndarray) -> np.ndarray:
    return array[20:-20, 20:-20]


@pytest.mark.parametrize("model", list(COEFFICIENTS))
def test_a_rectified_image_is_that_of_the_pinhole_camera(model):
    lens = lens_of(model)
    smooth = cv2.GaussianBlur(ROOM.image, (0, 0), 2.0)  # two interpolations blur edges
    distorted = distort(smooth, lens)
    before, after = (
        np.abs(inner(image).astype(int) - inner(smooth)).mean() for image in (distorted, Rectification(lens)(distorted))
    )
    assert before > 3 and after < 0.7


@pytest.mark.parametrize("model", list(COEFFICIENTS))
def test_true_depth_of_a_distorted_camera_gives_points_on_the_room_s_planes(model):
    lens = lens_of(model)
    rectification = Rectification(lens)
    seen = distort(ROOM.depth, lens, cv2.INTER_NEAREST)

    def distances(depth: np.ndarray) -> np.ndarray:
        """Distance of each point to the tangent plane of the true surface at its pixel, meters."""
        prediction = Prediction(np.ascontiguousarray(depth), None, None, None)
        points = PointCloud(labels=False)(ROOM.image, prediction, rectification.camera)
        true = ROOM.intrinsics.rays(240, 320) * ROOM.depth[..., None]
        return np.abs(((positions(points.cloud) - true) * -ROOM.normals).sum(-1))

    flat = inner(cv2.dilate(ROOM.edges, np.ones((7, 7), np.uint8))) == 0
    # The nearest pixel is half a pixel away, and a floor far away changes by more in half a pixel.
    assert np.median(inner(distances(rectification(seen)))[flat]) < 0.005
    assert np.median(inner(distances(seen))[flat]) > 0.01


def test_an_undistorted_lens_leaves_images_and_intrinsics_as_they_are():
    other = Intrinsics(1.0, 2.0, 3.0, 4.0)
    for model, coefficients in (("plumb_bob", (0.0,) * 5), ("", ()), ("none of these", (0.0,)), ("equidistant", ())):
        lens = Lens(320, 240, ROOM.intrinsics, model, coefficients, other)
        rectification = Rectification(lens)
        assert rectification(ROOM.image) is ROOM.image
        assert (rectification.camera, rectification.outside) == (ROOM.intrinsics, None)


def test_pixels_that_the_camera_does_not_see_are_marked_and_black():
    lens = lens_of("plumb_bob")
    # Half the focal length doubles the field of view, beyond that of the lens.
    wide = Intrinsics(lens.camera.fx / 2, lens.camera.fy / 2, lens.camera.cx, lens.camera.cy)
    rectification = Rectification(Lens(320, 240, lens.camera, lens.model, lens.coefficients, wide))
    assert rectification.camera == wide
    assert rectification.outside is not None and rectification.outside[0, 0] and not rectification.outside[120, 160]
    white = rectification(np.full((240, 320, 3), 255, np.uint8))
    np.testing.assert_array_equal(rectification.outside, (white < 255).any(-1))
    assert Rectification(lens_of("plumb_bob", coefficients=(-0.2, 0.0, 0.0, 0.0))).outside is None


def test_a_lens_is_rotated_and_scaled():
    angle = 0.02
    turn = (np.cos(angle), 0, np.sin(angle), 0, 1, 0, -np.sin(angle), 0, np.cos(angle))
    lens = lens_of("plumb_bob")
    turned = Lens(320, 240, lens.camera, lens.model, lens.coefficients, lens.rectified, turn)
    smooth = cv2.GaussianBlur(ROOM.image, (0, 0), 2.0)
    assert np.abs(inner(Rectification(turned)(distort(smooth, turned))).astype(int) - inner(smooth)).mean() < 0.7
    double, image = lens.scaled(480, 640), cv2.resize(smooth, (640, 480))
    small = cv2.resize(Rectification(double)(distort(image, double)), (320, 240), interpolation=cv2.INTER_AREA)
    assert (double.camera.fx, double.camera.cx) == (2 * lens.camera.fx, 319.5)
    assert np.abs(inner(small).astype(int) - inner(smooth)).mean() < 1.0


@pytest.mark.parametrize("count", [4, 5, 8, 12, 14])
def test_every_number_of_coefficients_of_a_model_is_accepted(count):
    model = "plumb_bob" if count < 8 else "rational_polynomial"
    coefficients = (-0.1, *(0.001,) * (count - 1))
    rectified = Rectification(lens_of(model, coefficients=coefficients))(ROOM.image)
    assert rectified.shape == ROOM.image.shape and not np.array_equal(rectified, ROOM.image)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "thin_prism"}, "distortion model 'thin_prism' is not known"),
        ({"coefficients": (0.1,) * 8}, "plumb_bob has 4 or 5 coefficients, not 8"),
        ({"model": "equidistant"}, "equidistant has 4 coefficients, not 5"),
        ({"coefficients": (np.nan, 0, 0, 0)}, "not finite"),
        ({"rotation": (0.0,) * 9}, "R is not a rotation"),
        ({"rotation": (1.0,) * 4}, "R is not a rotation"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_refused_in_one_line(changes, words):
    facts = {"model": "plumb_bob", "coefficients": COEFFICIENTS["plumb_bob"], **changes}
    with pytest.raises(M2HError, match=words):
        Lens(320, 240, ROOM.intrinsics, **facts)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(M2HError, match="64x48, and the calibration is for 320x240"):
        Rectification(lens_of("plumb_bob"))(np.zeros((48, 64, 3), np.uint8))


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """Open a bundle of the trained m2h-tiny."""
    from engines import build_bundle
    from export import export_onnx
    from m2h_deploy.model import load_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    export_onnx(load_checkpoint("m2h-tiny"), folder / "model.onnx", height=224, width=224)
    build_bundle(folder / "model.onnx", folder / "bundle")
    with Runtime.load(folder / "bundle") as opened:
        yield opened


@pytest.mark.slow
def test_depth_of_rectified_images_is_as_accurate_as_that_of_a_pinhole_camera(runtime):
    """The mean relative error on rooms, beside that of the distorted images."""
    rooms = [render_room(31, index, 480, 640) for index in range(12)]

    def error(images: list[np.ndarray]) -> float:
        pairs = zip(images, rooms, strict=True)
        return float(
            np.mean([np.mean(np.abs(runtime(image).depth - room.depth) / room.depth) for image, room in pairs])
        )

    pinhole = error([room.image for room in rooms])
    for model in COEFFICIENTS:
        lens = lens_of(model, 480, 640)
        seen = [distort(room.image, lens) for room in rooms]
        assert error([Rectification(lens)(image) for image in seen]) < 1.03 * pinhole
        assert error(seen) > 1.1 * pinhole
