"""Test `m2h-deploy calibrate` on rooms: it corrects a camera of another view, and leaves a right one alone."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from m2h_deploy import Runtime, Stream
from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.folder import MANIFEST, load_bundle, record_calibration
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.metrics import DepthMetric
from tests.commands import mistake, run_here

SIZE = 120, 160
SEED = 9100


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Eight rooms from a camera with a view of 90 degrees."""
    return write_multitask_folder(tmp_path_factory.mktemp("wide") / "rooms", Rooms(8, SEED, *SIZE, fov=90))


def calibrate(*arguments):
    result = run_here("calibrate", *arguments, "--json")
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def abs_rel(bundle, fov) -> float:
    metric = DepthMetric()
    with Runtime.load(bundle) as runtime:
        for frame in Rooms(5, SEED + 1, *SIZE, fov=fov):
            metric.update(runtime(frame.image).depth, frame.depth)
    return metric.compute()["abs_rel"]


def test_eight_frames_correct_a_camera_of_another_view(bundle, wide, tmp_path):
    before = abs_rel(bundle, 90)
    found = calibrate(bundle, "--data", wide, "--picture", tmp_path / "out.png")
    assert found["changed"] and found["frames"] == 8 and found["source"] == "frames"
    assert abs_rel(bundle, 90) < 0.75 * before
    stored = load_bundle(bundle).manifest.depth_calibration
    assert stored.scale == found["after"]["scale"] and stored.evidence.abs_rel_after < stored.evidence.abs_rel_before
    assert cv2.imread(str(tmp_path / "out.png")).shape[1] > 1000
    again = calibrate(bundle, "--data", wide)
    assert not again["changed"]
    # The focal length alone gives nearly the same.
    calibrate(bundle, "--focal", "--fov", 90)
    assert load_bundle(bundle).manifest.depth_calibration.scale == pytest.approx(stored.scale, rel=0.08)


def test_a_camera_like_that_of_the_training_is_left_alone(bundle, tmp_path):
    rooms = write_multitask_folder(tmp_path / "rooms", Rooms(8, SEED, *SIZE))
    manifest = (bundle / MANIFEST).read_bytes()
    result = run_here("calibrate", bundle, "--data", rooms)
    assert "no correction lowers the error significantly: the manifest is unchanged" in result.stdout
    assert (bundle / MANIFEST).read_bytes() == manifest


def test_five_taped_points_correct_it_too(bundle, tmp_path):
    rows = ["image,u,v,meters"]
    for number, (u, v) in enumerate([(40, 60), (80, 70), (110, 50), (70, 90), (120, 80)]):
        frame = render_room(SEED, number, *SIZE, 90)
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame.image)
        ray = frame.intrinsics.rays(*SIZE)[v, u]
        rows.append(f"{number}.png,{u},{v},{frame.depth[v, u] * np.linalg.norm(ray):.3f}")
    (tmp_path / "points.csv").write_text("\n".join(rows))
    found = calibrate(bundle, "--points", tmp_path / "points.csv", "--taped", "--fov", 90)
    assert found["changed"] and found["after"]["scale"] == pytest.approx(0.66, rel=0.15)


def test_a_calibration_is_applied_by_runtime_and_stream_and_can_be_removed(tiny_bundle, tmp_path):
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    image = render_room(0, 0, 48, 64).image
    cv2.imwrite(str(tmp_path / "image.png"), image)
    with Runtime.load(bundle) as runtime:
        plain = runtime(image).depth
    assert "depth x 1.427" in run_here("calibrate", bundle, "--scale", 1.427).stdout
    with Runtime.load(bundle) as runtime, Runtime.load(bundle, calibrated=False) as other:
        np.testing.assert_array_equal(runtime(image).depth, plain * np.float32(1.427))
        np.testing.assert_array_equal(other(image).depth, plain)
        (frame,) = Stream(runtime, tmp_path / "image.png")
        np.testing.assert_array_equal(frame.prediction.depth, plain * np.float32(1.427))
    assert "calibrated: depth x 1.427" in run_here("inspect", bundle).stdout
    assert "was removed" in run_here("calibrate", bundle, "--remove").stdout
    assert "no calibration to remove" in run_here("calibrate", bundle, "--remove").stdout
    assert load_bundle(bundle).manifest.depth_calibration is None


def test_depth_below_zero_is_zero(tiny_bundle, tmp_path):
    bundle = load_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    record_calibration(bundle, DepthCalibration(scale=1.0, offset=-3.0))
    image = render_room(0, 0, 48, 64).image
    with Runtime.load(bundle.path) as runtime, Runtime.load(bundle.path, calibrated=False) as plain:
        expected = np.maximum(plain(image).depth - np.float32(3), 0)
        assert (expected == 0).any() and (expected > 0).any()
        np.testing.assert_array_equal(runtime(image).depth, expected)


def test_a_rebuild_of_the_same_weights_keeps_the_calibration(tiny_bundle, tiny_onnx, tmp_path):
    from engines import build_bundle

    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    run_here("calibrate", bundle, "--scale", 0.967)
    assert build_bundle(tiny_onnx, bundle).manifest.depth_calibration.scale == 0.967


def test_verify_compares_the_uncalibrated_engine_unless_told_otherwise(tiny_bundle, tiny_onnx, tmp_path):
    from m2h_deploy.parity import verify

    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    data = Rooms(2, 0, 48, 64)
    plain = verify(bundle, tiny_onnx, data, pictures=0)
    run_here("calibrate", bundle, "--scale", 2)
    same, calibrated = (verify(bundle, tiny_onnx, data, pictures=0, calibrated=value) for value in (False, True))
    depth = [next(task for task in result.tasks if task.task == "depth") for result in (plain, same, calibrated)]
    assert depth[0] == depth[1]
    assert depth[2] != depth[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give what is known"),
        (("--scale", 1, "--remove"), "--scale and --remove exclude each other"),
        (("--scale", 0), "scale 0: a factor on the depth is from 0.1 to 10"),
        (("--scale", "nan"), "scale nan"),
        (("--scale", 1, "--fov", 60), "--fov and --intrinsics do not apply to --scale"),
        (("--focal",), "--focal needs the camera"),
        (("--focal", "--fov", 60, "--intrinsics", "1,1,1,1"), "give --fov or --intrinsics, not both"),
        (("--focal", "--fov", 200), "must be between 1 and 179 degrees"),
        (("--remove", "--taped"), "--taped applies only to --points"),
        (("--remove", "--picture", "x.png"), "--picture applies to --data, --points and --motion, not to --remove"),
        (("--focal", "--fov", 60, "--camera-size", "0x480"), "both sides must be above 0"),
        (("--remove", "--split", "all"), "--split applies only to --data"),
        (("--scale", 1, "--limit", 8), "--limit applies to --data and --motion"),
        (("--remove", "--rate", 10), "--poses, --offset and --rate apply only to --motion"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, tiny_bundle):
    manifest = (tiny_bundle / MANIFEST).read_bytes()
    assert message in mistake("calibrate", tiny_bundle, *options)
    assert (tiny_bundle / MANIFEST).read_bytes() == manifest


def test_data_without_depth_and_distances_in_millimeters_are_refused(bundle, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(3):
        cv2.imwrite(str(pictures / f"{number}.png"), render_room(1, number, 48, 64).image)
    assert "has no measured depth" in mistake("calibrate", bundle, "--data", pictures)
    rows = "".join(f"pictures/{number}.png,30,20,2500\n" for number in range(3))
    (tmp_path / "points.csv").write_text("image,u,v,meters\n" + rows)
    assert "give distances and poses in meters" in mistake("calibrate", bundle, "--points", tmp_path / "points.csv")
