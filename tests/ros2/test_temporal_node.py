"""Test the temporal filter of the node over DDS: `make test-ros2`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from m2h_deploy import Runtime
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.temporal import TemporalFilter

pytestmark = pytest.mark.ros2

ODOMETRY = {"temporal_filter": True, "temporal_pose_source": "odometry", "tf_timeout": 0.5}


@dataclass(frozen=True)
class Moving:
    """Run one node with the filter on a moving camera, then interrupt it."""

    result: dict[str, Any]
    pixels: dict[str, np.ndarray]
    exit_code: int
    log: str

    @property
    def pair(self) -> dict[str, Any]:
        """The last pair of images, which was filtered."""
        return self.result["pairs"][-1]

    def frame_ids(self) -> dict[tuple[str, int], str]:
        return {(m["topic"], m["stamp"]): m["frame_id"] for m in self.result["heard messages"]}


@pytest.fixture(scope="module")
def moving(ros, tiny_bundle) -> Moving:
    with ros.node(tiny_bundle, latest_only=False, **ODOMETRY) as node:
        result = ros.peer("temporal")
        exit_code = ros.interrupt(node)
    with np.load(ros.folder / "temporal.npz") as arrays:
        return Moving(result, dict(arrays), exit_code, ros.log())


def test_without_camera_info_and_odometry_frames_are_published_unfiltered_and_counted(moving):
    for missing in ("CameraInfo", "odometry"):
        status = moving.result[f"without {missing}"]
        assert int(status["values"]["unfiltered"]) >= 1
        assert status["values"]["filtered"] == "0"
        assert (status["level"], status["values"]["filter support"]) == (1, "0.00")
        assert f"unfiltered: no {missing} on" in status["message"]
    assert "unfiltered: no CameraInfo on /camera/color/camera_info" in moving.log


def test_filtered_outputs_are_the_filter_s_and_differ_from_the_raw_ones(moving, tiny_bundle):
    temporal = TemporalFilter(Intrinsics(100.0, 100.0, 64.0, 48.0))
    room = render_room(11, 3, 96, 128).image
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        for number, (stamp, seconds) in enumerate(zip(moving.pair["stamps"], moving.pair["times"], strict=True)):
            raw = runtime(np.clip(room.astype(int) + 25 * number, 0, 255).astype(np.uint8))
            pose = np.eye(4)
            pose[0, 3] = 0.2 * seconds
            expected = temporal(raw, pose, seconds)
            depth, labels = (moving.pixels[f"{topic} {stamp}"] for topic in ("depth", "labels"))
            # A pixel at the edge of the filter's gate may be on either side of it.
            assert np.mean(np.isclose(depth, expected.depth, atol=1e-3)) > 0.999
            assert np.mean(labels == expected.semantics) > 0.99
    assert np.mean(np.abs(depth - raw.depth) > 1e-3) > 0.04
    told = moving.pair["status"]["values"]["filter support"]
    assert float(told) == pytest.approx(temporal.support, abs=0.02)
    assert temporal.support > 0.2


def test_filtered_outputs_have_the_header_of_their_image(moving):
    heard = moving.frame_ids()
    for stamp in moving.pair["stamps"]:
        for topic in ("depth", "labels", "synced", "info"):
            assert heard[topic, stamp] == "camera_optical"


def test_diagnostics_report_the_filter(moving):
    values = moving.pair["status"]["values"]
    assert values["temporal filter"] == "on, poses from odometry on /odom"
    assert int(values["filtered"]) >= 2
    assert float(values["filter (ms)"]) > 0


def test_distortion_is_warned_about_once(moving):
    assert moving.log.count("states lens distortion") == 1


def test_the_node_with_the_filter_ends_cleanly(moving):
    assert moving.exit_code == 0, moving.log
    assert "Traceback" not in moving.log


def test_a_bad_setting_of_the_filter_gives_one_line_and_exit_code_2(ros, tiny_bundle):
    for parameters, words in (
        ({"history_size": 1}, "temporal filter: history_size is 1: must be 2 to 100"),
        ({"camera_in_body": "[1, 2]"}, "parameter camera_in_body"),
        ({"odom_topic": "bad topic"}, "'bad topic'"),
    ):
        with ros.node(tiny_bundle, **ODOMETRY, **parameters) as node:
            assert ros.wait(node) == 2, ros.log()
        assert words in ros.log().splitlines()[-1]
        assert "Traceback" not in ros.log()


def test_a_missing_ros_package_gives_one_line_and_exit_code_2(ros, tiny_bundle):
    for source, package in (("tf", "tf2_ros"), ("odometry", "nav_msgs")):
        code = (
            f"import sys\nsys.modules['{package}'] = None\nfrom m2h_perception.node import main\n"
            f"sys.exit(main(['--ros-args', '-p', 'bundle:={tiny_bundle}', '-p', 'temporal_filter:=true', "
            f"'-p', 'temporal_pose_source:={source}']))"
        )
        done = subprocess.run([ros.python, "-c", code], env=ros.environment, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert f"needs the ROS package {package}" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
