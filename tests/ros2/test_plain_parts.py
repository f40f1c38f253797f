"""Test the ROS node's messages, labels, lag and diagnostics, without ROS."""

from __future__ import annotations

import array
import re
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml
from m2h_perception import messages
from m2h_perception.camera import Camera
from m2h_perception.diagnostics import ERROR, OK, WARN, Monitor
from m2h_perception.policy import FramePolicy, lag_seconds
from m2h_perception.settings import Settings, defaults, unknown_parameters

from m2h_deploy import M2HError, Runtime
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.label_spaces.read import read_label_remap
from m2h_deploy.stream.health import Health
from m2h_deploy.stream.stream import Stream

PACKAGE = Path(__file__).parents[2] / "ros2"
ROOM = render_room(5, 0, 48, 64).image


def message(pixels: np.ndarray, encoding: str, padding: int = 0, **changes: object) -> SimpleNamespace:
    rows = np.pad(pixels.reshape(len(pixels), -1), ((0, 0), (0, padding)))
    facts = {"height": pixels.shape[0], "width": pixels.shape[1], "encoding": encoding, "step": rows.shape[1]}
    return SimpleNamespace(**{**facts, "data": array.array("B", rows.tobytes()), **changes})


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "conversion"),
    [
        ("bgr8", None),
        ("rgb8", cv2.COLOR_BGR2RGB),
        ("rgba8", cv2.COLOR_BGR2RGBA),
        ("bgra8", cv2.COLOR_BGR2BGRA),
        ("8UC3", cv2.COLOR_BGR2RGB),
    ],
)
def test_colors_of_any_encoding_and_step_become_bgr(encoding, conversion, padding):
    pixels = ROOM if conversion is None else cv2.cvtColor(ROOM, conversion)
    np.testing.assert_array_equal(messages.image_to_bgr(message(pixels, encoding, padding)), ROOM)


def test_gray_is_repeated_and_yuv_is_converted():
    gray = cv2.cvtColor(ROOM, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(messages.image_to_bgr(message(gray, "mono8")), np.dstack([gray] * 3))
    level = np.full((4, 6, 2), 128, np.uint8)
    level[:, :, 0] = 200  # Y first: YUYV of a light gray
    light = messages.image_to_bgr(message(level, "yuv422_yuy2"))
    assert light.shape == (4, 6, 3)
    assert np.ptp(light.reshape(-1, 3)) == 0
    assert light[0, 0, 0] > 200
    np.testing.assert_array_equal(messages.image_to_bgr(message(level[:, :, ::-1], "yuv422")), light)


def test_bgr_without_padding_is_not_copied():
    source = message(ROOM, "bgr8")
    source.data[0] = 7
    image = messages.image_to_bgr(source)
    source.data[0] = 99
    assert image[0, 0, 0] == 99


@pytest.mark.parametrize(
    "changes",
    [{"data": array.array("B", b"short")}, {"step": 3}, {"height": 0}, {"width": 4000}, {"encoding": "mono16"}],
)
def test_a_damaged_message_is_refused_in_one_line(changes):
    with pytest.raises(M2HError) as refusal:
        messages.image_to_bgr(message(ROOM, "bgr8", **{k: v for k, v in changes.items() if k != "encoding"})) if (
            "encoding" not in changes
        ) else messages.image_to_bgr(message(ROOM, changes["encoding"]))
    assert "\n" not in str(refusal.value)


def test_depth_is_32fc1_in_meters_times_the_scale():
    depth = np.linspace(1, 10, 12, dtype=np.float32).reshape(3, 4)
    pixels = messages.depth_pixels(depth, 0.5)
    assert (pixels.encoding, pixels.height, pixels.width, pixels.step) == ("32FC1", 3, 4, 16)
    np.testing.assert_array_equal(np.frombuffer(pixels.data, np.float32).reshape(3, 4), depth / 2)


def test_labels_are_mono8_and_looked_up():
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    table = np.arange(256, dtype=np.uint8)[::-1].copy()
    plain, looked_up = messages.label_pixels(labels), messages.label_pixels(labels, table)
    assert (plain.encoding, plain.step) == ("mono8", 3)
    assert list(plain.data) == [0, 1, 2, 3, 4, 5]
    assert list(looked_up.data) == [255, 254, 253, 252, 251, 250]


def test_colors_of_labels_are_the_palette_s_and_black_beyond_it():
    palette = messages.palette_table(((1, 2, 3), (4, 5, 6)))
    pixels = messages.color_pixels(np.array([[1, 0, 200]], np.uint8), palette)
    assert (pixels.encoding, list(pixels.data)) == ("rgb8", [4, 5, 6, 1, 2, 3, 0, 0, 0])


def test_normals_are_32fc3():
    pixels = messages.float_pixels(np.ones((2, 3, 3), np.float32))
    assert (pixels.encoding, pixels.step, len(pixels.data)) == ("32FC3", 36, 72)


def test_both_formats_of_label_remap_give_the_same_table(tmp_path):
    (tmp_path / "info.yaml").write_text(
        "class_info/0/labels: [0]\nclass_info/2/labels: [2, 20]\nclass_info/3/labels: [22]\nclass_info/3/color: [0.1]\n"
    )
    (tmp_path / "pairs.yaml").write_text(
        "- {sub_id: 2, super_id: 2}\n- {sub_id: 2, super_id: 20}\n- {sub_id: 3, super_id: 22}\n"
    )
    table = read_label_remap(tmp_path / "info.yaml")
    np.testing.assert_array_equal(table, read_label_remap(tmp_path / "pairs.yaml"))
    assert (table[20], table[22], table[5], table.shape, table.dtype) == (2, 3, 0, (256,), np.uint8)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: b", "- {sub_id: 300, super_id: 1}", "{", "- {sub_id: 1}"])
def test_a_file_that_is_not_a_label_remap_is_refused(tmp_path, text):
    (tmp_path / "remap.yaml").write_text(text)
    with pytest.raises(M2HError, match="label remap"):
        read_label_remap(tmp_path / "remap.yaml")


def test_every_nth_image_is_processed_from_the_first_on():
    policy = FramePolicy(skip_frequency=3)
    assert [policy.decide(1, 1).fate for _ in range(7)] == ["take", "skip", "skip", "take", "skip", "skip", "take"]


def test_late_images_are_reported_and_stale_ones_dropped():
    policy = FramePolicy(warn_lag=1.0, max_lag=2.0)
    verdicts = [policy.decide(10 * 10**9, int(now * 10**9)) for now in (10.5, 11.5, 12.5)]
    assert [(verdict.fate, verdict.late) for verdict in verdicts] == [("take", False), ("take", True), ("stale", True)]
    assert FramePolicy().decide(1, 10**18).fate == "take"


def test_an_image_without_a_stamp_or_of_the_future_has_no_lag():
    assert lag_seconds(0, 10**9) is None
    assert lag_seconds(2 * 10**9, 10**9) is None
    assert lag_seconds(10**9, 3 * 10**9) == pytest.approx(2.0)
    assert FramePolicy(max_lag=1.0).decide(0, 10**18).fate == "take"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def monitor(clock) -> Monitor:
    return Monitor("/camera", 2.0, {"model": "m2h", "self-test": "passed"}, clock=clock)


def test_a_camera_is_first_awaited_then_dead_then_alive(monitor, clock):
    assert monitor.report(Health()).level == WARN
    clock.now += 2.5
    dead = monitor.report(Health())
    assert (dead.level, dead.message) == (ERROR, "no image on /camera for 2.5 s")
    assert monitor.silent() == pytest.approx(2.5)
    monitor.received("bgr8")
    monitor.sized(640, 480)
    monitor.published(0.05, 20.0)
    clock.now += 1.0
    alive = monitor.report(Health(read=1, delivered=1))
    assert (alive.level, alive.message) == (OK, "1.0 frames a second")
    assert monitor.silent() is None
    assert alive.values["frame age (ms)"] == "50.0"
    assert alive.values["camera"] == "640x480 bgr8"
    assert alive.values["self-test"] == "passed"


def test_a_second_stream_does_not_inherit_the_first_one_s_faults_and_silence(monitor, clock):
    monitor.received("bgr8")
    monitor.published(0.05, 20.0)
    assert "3 frames lost" in monitor.report(Health(failed=3)).message
    clock.now += 3600
    monitor.begin()
    clock.now += 0.5
    monitor.published(0.05, 20.0)
    later = monitor.report(Health())
    assert (later.level, later.message) == (OK, "2.0 frames a second")
    assert later.values["published"] == "2"


def test_a_changed_resolution_is_reported_once(monitor, clock):
    monitor.received("bgr8")
    assert monitor.sized(640, 480) is None
    assert "640x480 to 320x240" in str(monitor.sized(320, 240))
    clock.now += 1
    assert monitor.report(Health()).level == WARN
    monitor.received("bgr8")
    monitor.sized(320, 240)
    assert monitor.report(Health()).level == OK


def test_lost_frames_are_a_warning_and_an_error_if_all_are_lost(monitor, clock):
    monitor.received("bgr8")
    monitor.sized(64, 48)
    bad = Health(read=2, corrupt=2, problems=("image: damaged",))
    assert monitor.report(bad).level == ERROR
    assert monitor.report(bad).level == OK  # nothing new
    monitor.published(None, 1.0)
    worse = monitor.report(Health(read=3, corrupt=3, problems=("image: damaged",)))
    assert (worse.level, worse.message) == (WARN, "1 frames lost: image: damaged")
    assert worse.values["unreadable"] == "3"
    monitor.failed("the engine is given up")
    assert monitor.report(bad).level == ERROR


def test_the_largest_age_is_that_of_the_period(monitor, clock):
    monitor.received("bgr8")
    monitor.sized(64, 48)
    for age in (0.1, 0.3, 0.2):
        monitor.published(age, 1.0)
    clock.now += 1
    assert monitor.report(Health()).values["frame age, largest (ms)"] == "300.0"
    assert monitor.report(Health()).values["frame age, largest (ms)"] == "none"


def test_frames_keep_their_messages_and_bad_ones_do_not_affect_others(tiny_bundle):
    good = [message(render_room(5, i, 48, 64).image, "bgr8", label=i) for i in range(3)]
    camera: Camera = Camera(messages.image_to_bgr, capacity=4)
    for item in (good[0], message(ROOM, "mono16"), *good[1:]):
        assert not camera.put(item)
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        # A busy machine may take long for a frame, and a frame that timed out would never arrive.
        stream = Stream(runtime, camera.source(), policy="queue", timeout=600)
        labels = []
        for frame in stream:
            labels.append(camera.message_of(frame.image).label)
            if len(labels) == 3:
                camera.close()
        assert labels == [0, 1, 2]
        assert (stream.health.read, stream.health.corrupt) == (4, 1)


def test_the_newest_image_replaces_a_waiting_one():
    camera: Camera = Camera(messages.image_to_bgr)
    assert [camera.put(message(ROOM, "bgr8", label=i)) for i in range(3)] == [False, True, True]
    frames = camera.source().read()
    assert camera.message_of(next(frames).image).label == 2
    camera.close()
    assert list(frames) == []


def test_the_yaml_has_every_parameter_with_its_default():
    content = yaml.safe_load((PACKAGE / "config" / "m2h_perception.yaml").read_text())
    assert content["/**"]["ros__parameters"] == defaults()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bundle", ""),
        ("skip_frequency", 0),
        ("depth_scale", 0.0),
        ("max_output_lag_s", -1.0),
        ("threads", -1),
        ("depth_scale", "1"),
        ("engine_timeout_s", True),
        ("camera_timeout_s", float("nan")),
        ("diagnostics_period_s", 1e300),
        ("output_queue_size", 2**40),
    ],
)
def test_bad_parameters_are_refused_by_name(name, value):
    with pytest.raises(M2HError, match=name):
        Settings(**{**defaults(), "bundle": "here", name: value})


def test_an_integer_becomes_a_float_for_a_float_parameter():
    settings = Settings(**{**defaults(), "bundle": "here", "warn_output_lag_s": 5})
    assert type(settings.warn_output_lag_s) is float
    assert settings.warn_output_lag_s == 5.0


def test_an_unknown_parameter_gives_one_line_with_the_nearest_known_name():
    (line,) = unknown_parameters([*defaults(), "engin_timeout_s"])
    assert line == "parameter engin_timeout_s is unknown and has no effect: did you mean engine_timeout_s?"
    assert unknown_parameters(defaults()) == []
    lines = unknown_parameters(["zzz", "image_topics", "Bundle"])
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert "did you mean bundle?" in lines[0] and "did you mean image_topic?" in lines[1]
    assert "m2h_perception.yaml has all of them" in lines[2]


@pytest.mark.parametrize("name", list(defaults()))
def test_a_typo_in_any_parameter_finds_the_right_name(name):
    for slip in (name[:-2] + name[-1], name + "s", name.replace("_", "", 1) + "x", name[0] + name):
        (line,) = unknown_parameters([slip]) if slip not in defaults() else (f"did you mean {name}?",)
        assert f"did you mean {name}?" in line


def test_the_parts_without_topics_do_not_import_rclpy():
    users = {
        path.name
        for path in (PACKAGE / "m2h_perception").glob("*.py")
        if re.search(r"^ *(import|from) rclpy", path.read_text(), re.MULTILINE)
    }
    topics = {"inputs.py", "publishers.py", "status_topic.py", "pose_topics.py", "parameters.py"}
    assert users == topics | {"node.py", "lifecycle.py", "perception.py"}
