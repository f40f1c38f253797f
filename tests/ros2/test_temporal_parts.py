"""Test the temporal filter's part of the ROS node, without ROS: poses, intrinsics, settings and counters."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from m2h_perception import messages
from m2h_perception.camera import Camera, Located
from m2h_perception.poses import OdometryPoses, TfPoses, rigid_transform
from m2h_perception.settings import Settings, defaults
from m2h_perception.temporal import Temporal

from m2h_deploy import M2HError
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.temporal import FilterSettings, TemporalFilter

MS = 1_000_000
START = 1_700_000_000 * 1000 * MS

#: A camera that looks along the x axis of a body whose axes are x forward, y left, z up.
FORWARD = "0.1 0 0 -0.5 0.5 -0.5 0.5"


def header(stamp: int, frame: str = "camera") -> SimpleNamespace:
    seconds, nanoseconds = divmod(stamp, 1000 * MS)
    return SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=nanoseconds), frame_id=frame)


def point(x: float, y: float = 0.0, z: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(x=x, y=y, z=z)


def turn(yaw: float = 0.0) -> SimpleNamespace:
    """Return the quaternion of a rotation about z."""
    return SimpleNamespace(x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2))


def odometry(stamp: int, x: float, yaw: float = 0.0, body: str = "camera") -> SimpleNamespace:
    pose = SimpleNamespace(pose=SimpleNamespace(position=point(x), orientation=turn(yaw)))
    return SimpleNamespace(header=header(stamp, "odom"), child_frame_id=body, pose=pose)


def poses(*received: SimpleNamespace, **changes: object) -> OdometryPoses:
    result = OdometryPoses("/odom", **{"timeout": 0.02, "cache": 10.0, **changes})
    for message in received:
        result.put(message)
    return result


def test_a_pose_is_interpolated_at_the_image_s_stamp():
    pose = poses(odometry(START, 1.0), odometry(START + 40 * MS, 2.0, yaw=0.4)).at(START + 10 * MS, "camera")
    np.testing.assert_allclose(pose[:3, 3], [1.25, 0, 0], atol=1e-9)
    np.testing.assert_allclose(pose[:2, 0], [np.cos(0.1), np.sin(0.1)], atol=1e-9)


def test_between_distant_messages_the_nearest_within_the_timeout_counts():
    sparse = poses(odometry(START, 1.0), odometry(START + 300 * MS, 2.0))
    assert sparse.at(START + 15 * MS, "camera")[0, 3] == 1.0
    assert sparse.at(START + 150 * MS, "camera") == "/odom has no pose at the image's time"


def test_an_image_waits_for_a_pose_that_is_as_new():
    late = poses(odometry(START, 1.0), timeout=1.0)
    thread = threading.Timer(0.05, late.put, [odometry(START + 40 * MS, 2.0)])
    thread.start()
    pose = late.at(START + 20 * MS, "camera")
    thread.join()
    assert pose[0, 3] == pytest.approx(1.5)


def test_an_image_does_not_wait_if_there_is_no_odometry():
    start = time.monotonic()
    assert poses(timeout=1.0).at(START, "camera") == "no odometry on /odom"
    assert time.monotonic() - start < 0.5


def test_a_recording_that_starts_again_drops_the_poses_of_its_first_run():
    looped = poses(odometry(START, 1.0), odometry(START + 1000 * MS, 5.0), odometry(START + 10 * MS, 3.0))
    assert looped.at(START + 12 * MS, "camera")[0, 3] == 3.0
    assert isinstance(looped.at(START + 1000 * MS, "camera"), str)


def test_old_poses_are_dropped():
    kept = poses(*(odometry(START + i * 100 * MS, float(i)) for i in range(100)), cache=1.0)
    assert isinstance(kept.at(START + 500 * MS, "camera"), str)
    assert kept.at(START + 9500 * MS, "camera")[0, 3] == 95.0


@pytest.mark.parametrize("bad", [odometry(START, float("nan")), odometry(START, 1.0, yaw=float("nan"))])
def test_a_pose_that_is_not_finite_is_unknown(bad):
    assert isinstance(poses(bad).at(START, "camera"), str)


def test_a_pose_that_was_not_filled_is_unknown():
    empty = odometry(START, 0.0)
    empty.pose.pose.orientation = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=0.0)
    assert isinstance(poses(empty).at(START, "camera"), str)


def test_odometry_of_a_body_needs_the_camera_s_place_in_it():
    reason = poses(odometry(START, 1.0, body="base_link")).at(START, "camera_optical")
    assert reason == "/odom has poses of 'base_link', not of the camera 'camera_optical': set camera_in_body"
    named = poses(odometry(START, 1.0), camera_frame="camera")
    assert named.at(START, "another name of it")[0, 3] == 1.0


def test_the_camera_s_place_in_the_body_moves_with_it():
    mounted = Settings(**{**defaults(), "bundle": "here", "camera_in_body": FORWARD}).camera_pose
    turned = poses(odometry(START, 1.0, yaw=np.pi / 2, body="base_link"), camera_in_body=mounted)
    pose = turned.at(START, "camera")
    # The body looks along y now: so does the camera's z axis, 10 cm before the body.
    np.testing.assert_allclose(pose[:3, 3], [1.0, 0.1, 0.0], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 1], [0, 0, -1], atol=1e-9)


class _TransformError(Exception):
    """As tf2's TransformException."""


class _ExtrapolationError(_TransformError):
    pass


TF2 = SimpleNamespace(TransformException=_TransformError, ExtrapolationException=_ExtrapolationError)


class Buffer:
    """As a tf2_ros.Buffer that has the transforms of `frames` up to `newest`; each lookup adds `step` to it."""

    def __init__(self, newest: int, step: int = 0, frames: tuple[str, str] = ("odom", "camera")) -> None:
        self.newest, self.step, self.frames, self.cleared = newest, step, frames, 0

    def lookup_transform(self, target: str, source: str, stamp: int) -> SimpleNamespace:
        if (target, source) != self.frames:
            raise _TransformError("unknown")
        self.newest += self.step
        if stamp > self.newest:
            raise _ExtrapolationError("into the future")
        return SimpleNamespace(transform=SimpleNamespace(translation=point((stamp - START) / MS), rotation=turn(0.2)))

    def clear(self) -> None:
        self.cleared += 1


def tf(buffer: Buffer, **changes: object) -> TfPoses:
    return TfPoses(buffer, TF2, int, **{"fixed_frame": "odom", "timeout": 0.05, **changes})


def test_a_pose_from_tf_is_the_camera_s_in_the_fixed_frame():
    pose = tf(Buffer(START + 100 * MS)).at(START + 7 * MS, "camera")
    np.testing.assert_allclose(pose, rigid_transform((7, 0, 0), (0, 0, np.sin(0.1), np.cos(0.1))))
    assert isinstance(tf(Buffer(START), camera_frame="camera").at(START, "another"), np.ndarray)


def test_tf_is_awaited_until_it_reaches_the_image_s_time_and_no_longer():
    assert isinstance(tf(Buffer(START, step=10 * MS), timeout=5.0).at(START + 50 * MS, "camera"), np.ndarray)
    start = time.monotonic()
    assert tf(Buffer(START)).at(START + MS, "camera") == "tf from camera to odom has nothing at the image's time"
    assert time.monotonic() - start >= 0.05


def test_a_frame_that_tf_lacks_is_not_awaited():
    start = time.monotonic()
    assert tf(Buffer(START), timeout=1.0).at(START, "gripper") == "tf has no transform from gripper to odom"
    assert tf(Buffer(START), timeout=1.0).at(START, "") == "the image has no frame_id: set camera_frame"
    assert time.monotonic() - start < 0.5


def test_tf_is_cleared_when_the_images_time_runs_backwards():
    buffer = Buffer(START + 1000 * MS)
    poses_of_tf = tf(buffer)
    for stamp in (START, START + 100 * MS, START + 100 * MS):
        poses_of_tf.at(stamp, "camera")
    assert buffer.cleared == 0
    poses_of_tf.at(START, "camera")
    assert buffer.cleared == 1


def camera_info(width: int = 640, height: int = 480, focal: float = 500.0, distortion: tuple = ()) -> SimpleNamespace:
    k = [focal, 0.0, 319.5, 0.0, focal, 239.5, 0.0, 0.0, 1.0]
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)
    return SimpleNamespace(width=width, height=height, k=k, d=list(distortion), roi=roi)


def image(stamp: int = START, width: int = 640, height: int = 480) -> SimpleNamespace:
    return SimpleNamespace(header=header(stamp), width=width, height=height)


def test_intrinsics_are_k_scaled_to_the_image():
    assert messages.intrinsics(camera_info(), image()) == Intrinsics(500.0, 500.0, 319.5, 239.5)
    assert messages.intrinsics(camera_info(0, 0), image()) == Intrinsics(500.0, 500.0, 319.5, 239.5)
    half = messages.intrinsics(camera_info(), image(width=320, height=240))
    assert half == Intrinsics(250.0, 250.0, 159.5, 119.5)


def test_intrinsics_of_a_cropped_or_uncalibrated_camera_are_refused():
    with pytest.raises(M2HError, match="640x480 and images are 640x360"):
        messages.intrinsics(camera_info(), image(height=360))
    with pytest.raises(M2HError, match="not calibrated"):
        messages.intrinsics(camera_info(focal=0.0), image())


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def temporal(warnings) -> Temporal:
    still = poses(*(odometry(START + i * 20 * MS, 0.0) for i in range(20)))
    return Temporal(TemporalFilter(), still, source="odometry", camera_info_topic="/info", warn=warnings.append)


def test_an_image_without_what_the_filter_needs_has_no_pose_but_a_reason(temporal):
    assert temporal.locate(image()) == Located(START * 1e-9, None, "no CameraInfo on /info")
    temporal.on_camera_info(camera_info())
    assert temporal.locate(image(0)) == Located(None, None, "the image has no stamp")
    assert "aspect ratio" in temporal.locate(image(height=300)).reason
    assert temporal.locate(image(START - 1000 * MS)).reason == "/odom has no pose at the image's time"
    located = temporal.locate(image(START + 30 * MS))
    assert (located.timestamp, located.reason) == (pytest.approx(START * 1e-9 + 0.03), "")
    np.testing.assert_array_equal(located.pose, np.eye(4))
    assert temporal.filter.intrinsics == Intrinsics(500.0, 500.0, 319.5, 239.5)


def test_distortion_is_a_warning_once(temporal, warnings):
    for _ in range(3):
        temporal.on_camera_info(camera_info(distortion=(0.1, 0.0)))
    assert warnings == ["/info states lens distortion, which the temporal filter ignores"]


def test_values_count_filtered_and_unfiltered_frames_with_reasons(temporal):
    before = temporal.values()
    assert (before["filtered"], before["filter (ms)"], before["unfiltered, by reason"]) == ("0", "none", "none")
    depth = np.full((48, 64), 2.0, np.float32)
    temporal.on_camera_info(camera_info())
    for stamp in (START, START + 20 * MS, START + 40 * MS, START + 20 * MS, START - 1000 * MS):
        located = temporal.locate(image(stamp, 64, 48))
        raw = Prediction(depth, None, None, None)
        temporal.published(located, temporal.filter(raw, located.pose, located.timestamp))
    values = temporal.values()
    assert (values["temporal filter"], values["filtered"]) == ("on, poses from odometry", "4")
    assert (values["unfiltered"], values["unfiltered, by reason"]) == ("1", "/odom has no pose at the image's time: 1")
    assert values["filter resets"] == "time runs backwards: 1"
    assert float(values["filter (ms)"]) >= 0


def test_the_frames_of_the_source_have_time_and_pose():
    pose = rigid_transform((1, 2, 3), (0, 0, 0, 1))
    camera: Camera = Camera(
        lambda message: np.zeros((4, 4, 3), np.uint8), capacity=2, locate=lambda _: Located(5.0, pose)
    )
    camera.put(SimpleNamespace(header=header(START)))
    frame = next(camera.source().read())
    assert (frame.timestamp, frame.pose is pose, camera.located_of(frame.image).timestamp) == (5.0, True, 5.0)


def settings(**changes: object) -> Settings:
    return Settings(**{**defaults(), "bundle": "here", **changes})


def test_the_filter_s_settings_are_the_parameters():
    assert settings().filter_settings() == FilterSettings()
    chosen = settings(history_size=4, max_history_age_s=1, depth_gate_rel=0.5).filter_settings()
    assert chosen == FilterSettings(history_size=4, max_history_age_s=1.0, depth_gate_rel=0.5)


@pytest.mark.parametrize("given", ["30, 31", "30 31", [30, 31]])
def test_dynamic_labels_are_a_string_or_a_list(given):
    assert settings(dynamic_labels=given).filter_settings().dynamic_labels == (30, 31)


def test_dynamic_labels_are_those_after_the_remap():
    remap = np.zeros(256, np.uint8)
    remap[[4, 9]] = 7
    assert settings(dynamic_labels=7).filter_settings(remap).dynamic_labels == (4, 9)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("history_size", 1),
        ("min_depth", 20.0),
        ("tf_timeout", 3.0),
        ("tf_buffer_size", 0.0),
        ("temporal_pose_source", "imu"),
        ("dynamic_labels", "person"),
        ("dynamic_labels", 300),
        ("dynamic_labels", True),
        ("camera_in_body", "0 0 0"),
        ("camera_in_body", "0 0 0 0 0 0 0"),
        ("camera_in_body", "nan 0 0 0 0 0 1"),
        ("camera_info_topic", ""),
        ("fixed_frame", ""),
    ],
)
def test_bad_parameters_of_the_filter_are_refused_by_name(name, value):
    with pytest.raises(M2HError, match=name):
        settings(temporal_filter=True, **{name: value})
