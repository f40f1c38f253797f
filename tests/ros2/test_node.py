"""Test the node with real messages over real DDS on loopback: `make test-ros2`."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.data.rooms.render import render_room

pytestmark = pytest.mark.ros2

TOPICS = ("depth", "labels", "color", "normals", "edges", "synced")


@dataclass(frozen=True)
class Walk:
    """Run one node through every kind of image and failure, then interrupt it."""

    result: dict[str, Any]
    pixels: dict[str, np.ndarray]
    exit_code: int
    log: str

    def heard(self, topic: str) -> dict[int, dict[str, Any]]:
        return {m["stamp"]: m for m in self.result["heard messages"] if m["topic"] == topic}


@pytest.fixture(scope="module")
def walk(ros, tiny_bundle) -> Walk:
    parameters = {
        "publish_color_semantic": True,
        "normals_topic": "/test/normals",
        "edges_topic": "/test/edges",
        "camera_timeout_s": 4.0,
    }
    with ros.node(tiny_bundle, **parameters) as node:
        result = ros.peer("walk")
        exit_code = ros.interrupt(node)
    with np.load(ros.folder / "walk.npz") as arrays:
        return Walk(result, dict(arrays), exit_code, ros.log())


def test_every_output_carries_its_input_s_stamp_and_frame(walk):
    assert all(sent["ok"] for sent in walk.result["sent"])
    for topic in (*TOPICS, "info"):
        heard = walk.heard(topic)
        for sent in walk.result["sent"]:
            assert heard[sent["stamp"]]["frame_id"] == sent["frame_id"], topic


def test_encodings_sizes_and_steps_are_those_that_mono_hydra_reads(walk):
    expected = {"depth": ("32FC1", 512), "labels": ("mono8", 128), "color": ("rgb8", 384)}
    expected |= {"normals": ("32FC3", 1536), "edges": ("32FC1", 512)}
    for topic, (encoding, step) in expected.items():
        for sent in walk.result["sent"]:
            message = walk.heard(topic)[sent["stamp"]]
            facts = (message["encoding"], message["width"], message["height"], message["step"], message["bytes"])
            assert facts == (encoding, 128, 96, step, 96 * step)


def test_the_pixels_are_the_runtime_s(walk, tiny_bundle):
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        for index, sent in enumerate(walk.result["sent"]):
            if sent["encoding"] == "mono8":
                continue
            prediction = runtime(render_room(11, index, 96, 128).image)
            depth, labels = (walk.pixels[f"{topic} {sent['stamp']}"] for topic in ("depth", "labels"))
            np.testing.assert_allclose(depth, prediction.depth, atol=1e-3)
            assert np.mean(labels == prediction.semantics) > 0.999


def test_the_synced_image_is_the_input_and_camera_info_has_its_header(walk):
    for sent in walk.result["sent"]:
        image, info = (walk.heard(topic)[sent["stamp"]] for topic in ("synced", "info"))
        assert image["encoding"] == sent["encoding"]
        assert (info["frame_id"], info["width"], info["k"][0]) == (sent["frame_id"], 128, 100.0)


def test_diagnostics_report_the_self_test_the_engine_and_the_frame_s_age(walk):
    values = walk.result["steady"]["values"]
    assert values["self-test"] == "passed"
    assert values["engine"].startswith("onnxruntime")
    assert float(values["frame age (ms)"]) > 0
    assert int(values["published"]) >= 5
    assert values["temporal filter"] == "off"


def test_a_damaged_message_is_counted_and_skipped(walk):
    assert int(walk.result["after damage"]["values"]["unreadable"]) >= 1
    assert walk.result["smaller"]


def test_a_changed_resolution_is_reported_and_answered_in_its_own_size(walk):
    message = walk.heard("depth")[1_700_000_000 * 10**9 + 7]
    assert (message["width"], message["height"]) == (96, 72)
    assert "resolution changed from 128x96 to 96x72" in walk.log


def test_camera_info_of_another_size_is_held_back(walk):
    assert 1_700_000_000 * 10**9 + 7 not in walk.heard("info")
    assert walk.result["held back"]


def test_a_dead_camera_is_reported_and_processed_again_after_its_return(walk):
    assert "no image on" in walk.result["dead"]["message"]
    assert walk.result["revived"]
    assert walk.result["alive"]["level"] < 2


def test_sigint_ends_the_node_cleanly(walk):
    assert walk.exit_code == 0, walk.log
    assert "Traceback" not in walk.log
    assert "terminate" not in walk.log


def test_sigint_in_the_middle_of_a_stream_is_clean(ros, tiny_bundle):
    with ros.node(tiny_bundle) as node, ros.peer_in_background("soak", node.pid, 60) as said:
        said("sent 60 images")
        assert ros.interrupt(node) == 0, ros.log()
    assert "Traceback" not in ros.log()
    assert "terminate" not in ros.log()


def test_latest_only_keeps_no_queue(ros, tiny_bundle):
    with ros.node(tiny_bundle) as node:
        result = ros.peer("burst")
        assert ros.interrupt(node) == 0, ros.log()
    answered = result["answered"]
    assert answered == sorted(answered)
    assert answered[-1] == 99 + result["sent"]
    assert result["late"] == []
    assert result["quiet"] is not None, ros.log()


def test_a_recording_is_answered_frame_by_frame_with_its_own_stamps(ros, tiny_bundle):
    bag = ros.folder / "rooms.mcap"
    peer = Path(__file__).with_name("peer.py")
    subprocess.run([ros.python, str(peer), "write-bag", str(bag), "6"], env=ros.environment, check=True)
    with ros.node(tiny_bundle, latest_only=False, use_sim_time=True) as node:
        result = ros.peer("replay", bag)
        assert ros.interrupt(node) == 0, ros.log()
    assert result["before"] is not None, "diagnostics wait for the recording's clock"
    assert len(result["sent"]) == 6
    for topic in ("depth", "labels"):
        heard = {m["stamp"]: m["frame_id"] for m in result["heard messages"] if m["topic"] == topic}
        assert heard == dict.fromkeys(result["sent"], "camera_optical")
    # By the recording's clock an image is 10 ms old when it is played, not years.
    assert float(result["status"]["values"]["frame age (ms)"]) < 10_000


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"bundle": "nowhere"}, "nowhere is not a bundle"),
        ({"skip_frequency": 0}, "skip_frequency"),
        ({"self_test": 1}, "'self_test' to '1' of type 'INTEGER', expecting type 'BOOL'"),
        ({"depth_scale": "much"}, "parameter depth_scale is much: must be a number"),
        ({"image_topic": "bad//topic"}, "topic name must not contain repeated '/'"),
        ({"image_depth_topic": "bad topic"}, "'bad topic'"),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(ros, tiny_bundle, parameters, words):
    with ros.node(**{"bundle": tiny_bundle, **parameters}) as node:
        assert ros.wait(node) == 2, ros.log()
    assert words in ros.log()
    assert ros.log().count("error: ") == 1
    assert ros.log().endswith("\n") and ros.log().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in ros.log()


def test_an_unknown_parameter_is_a_warning_with_the_nearest_known_name(ros, tiny_bundle):
    with ros.node(tiny_bundle, engin_timeout_s=3, use_sim_time=False) as node:
        assert ros.interrupt(node) == 0
    (line,) = (line for line in ros.log().splitlines() if "unknown" in line)
    assert line.endswith("parameter engin_timeout_s is unknown and has no effect: did you mean engine_timeout_s?")


def test_a_misspelled_bundle_parameter_is_hinted_at_before_the_error(ros, tiny_bundle):
    with ros.node(**{"bundle": "", "bundel": tiny_bundle}) as node:
        assert node.wait(60) == 2, ros.log()
    assert "did you mean bundle?" in ros.log()
    assert "parameter bundle: name the folder" in ros.log().splitlines()[-1]


def test_a_command_line_that_ros_refuses_gives_exit_code_2(ros, tiny_bundle):
    words = ["-m", "m2h_perception.node", "--ros-args", "-p", "no assignment"]
    done = subprocess.run([ros.python, *words], env=ros.environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_float_parameter_accepts_an_integer_and_an_empty_topic_is_off(ros, tiny_bundle):
    off = dict.fromkeys(("camera_info_topic", "synced_rgb_topic", "label_ids_topic"), "")
    with ros.node(tiny_bundle, warn_output_lag_s=5, camera_timeout_s=3, **off) as node:
        result = ros.peer("topics")
        assert ros.interrupt(node) == 0, ros.log()
    assert result["answered"]
    told = {topic for topic in result["published"] if topic not in ("/rosout", "/parameter_events")}
    assert told == {"/camera/depth_cam/image_raw", "/diagnostics"}
    assert "/camera/color/image_raw" in result["subscribed"]
    assert not any("camera_info" in topic for topic in result["subscribed"])


@pytest.mark.parametrize("delay", [0.0, 0.3, 1.0, None])
def test_sigterm_ends_the_node_cleanly_while_it_starts_and_afterwards(ros, tiny_bundle, delay):
    """`delay` is in seconds after ROS has installed its signal handlers; None: when the node is ready."""
    with ros.node(tiny_bundle, ready=delay is None, diagnostics_period_s=0.01) as node:
        if delay is not None:
            ros.wait_for_handler(node)
            time.sleep(delay)
        node.terminate()
        assert ros.wait(node) == 0, ros.log()
    assert "Traceback" not in ros.log()
    assert "terminate" not in ros.log()


def test_sigterm_just_before_the_executor_is_made_prints_no_traceback(ros):
    code = (
        "import rclpy\nfrom m2h_perception.node import _Executor\nrclpy.init()\nrclpy.shutdown()\n"
        "try:\n    _Executor()\nexcept Exception:\n    print('refused')\n"
    )
    done = subprocess.run([ros.python, "-c", code], env=ros.environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_a_bundle_that_fails_its_self_test_does_not_start(ros, tiny_bundle, tmp_path):
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    manifest = json.loads((broken / "manifest.json").read_text())
    for output in manifest["self_test"]["outputs"].values():
        output["values"] = [value + 100 for value in output["values"]]
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with ros.node(broken) as node:
        assert ros.wait(node) == 1, ros.log()
    assert "self-test failed" in ros.log()


@pytest.mark.slow
def test_five_minutes_at_30_hz_grow_neither_memory_nor_queue(ros, tiny_bundle):
    with ros.node(tiny_bundle) as node:
        result = ros.peer("soak", node.pid, 300)
        assert ros.interrupt(node) == 0, ros.log()
    assert result["heard"] > 0
    assert result["wrong"] == 0
    assert int(result["last"]["values"]["in work"]) <= 6
    # DDS fills the histories of the topics in steps, later on slower machines. A leak grows continuously.
    parts = np.array_split(np.array(result["memory"][60:], float), 6)
    growth = np.diff([np.median(part) for part in parts])
    images = int(result["last"]["values"]["received"]) * len(parts[0]) / len(result["memory"])
    assert growth.min() < 640 * 480 * 3 * images / 200, "at least one image in 200 is kept"
