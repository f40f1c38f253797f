"""Test the examples for Nav2, Mono-Hydra and a camera against the node's parameters and topics."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml
from m2h_perception.settings import Settings, defaults

from tests.pages import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
LAUNCHERS = [
    EXAMPLES / "mono_hydra" / "mono_hydra.launch.py",
    REPOSITORY / "ros2" / "launch" / "m2h_perception.launch.py",
    EXAMPLES / "ros2" / "camera.launch.py",
]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "nav2" / name).read_text())


@pytest.fixture
def settings() -> Settings:
    given = read("m2h_perception.yaml")["/**"]["ros__parameters"]
    assert given.keys() <= defaults().keys()
    return Settings(**{**defaults(), "bundle": "here", **given})


def test_the_voxel_layer_observes_the_clouds_that_the_node_publishes(settings):
    layer = read("local_costmap.yaml")["local_costmap"]["local_costmap"]["ros__parameters"]["voxel_layer"]
    sources = {name: layer[name] for name in layer["observation_sources"].split()}
    assert {name: source["topic"] for name, source in sources.items()} == {
        "ground": settings.ground_topic,
        "obstacles": settings.obstacles_topic,
    }
    assert {source["data_type"] for source in sources.values()} == {"PointCloud2"}
    # Clouds state the frame themselves, and the layer clears along the rays from it.
    assert not any("sensor_frame" in source for source in sources.values())
    assert {name: (source["marking"], source["clearing"]) for name, source in sources.items()} == {
        "ground": (False, True),
        "obstacles": (True, True),
    }
    assert sources["ground"]["min_obstacle_height"] < 0 < sources["ground"]["max_obstacle_height"]
    assert layer["z_voxels"] <= 16 and layer["z_voxels"] * layer["z_resolution"] >= layer["max_obstacle_height"]


def test_the_voxel_layer_has_no_parameter_that_nav2_does_not_declare():
    """The names are those of Nav2's page about the voxel layer."""
    own = {"plugin", "enabled", "footprint_clearing_enabled", "max_obstacle_height", "min_obstacle_height", "z_voxels"}
    own |= {"origin_z", "z_resolution", "unknown_threshold", "mark_threshold", "combination_method"}
    own |= {"publish_voxel_map", "observation_sources"}
    source = {"topic", "sensor_frame", "observation_persistence", "expected_update_rate", "data_type", "inf_is_valid"}
    source |= {"min_obstacle_height", "max_obstacle_height", "marking", "clearing"}
    source |= {f"{kind}_{end}_range" for kind in ("obstacle", "raytrace") for end in ("min", "max")}
    layer = read("local_costmap.yaml")["local_costmap"]["local_costmap"]["ros__parameters"]["voxel_layer"]
    names = layer["observation_sources"].split()
    assert layer.keys() <= own | set(names)
    assert all(layer[name].keys() <= source for name in names)


def constants(path: Path) -> dict[str, Any]:
    """Return the module's constants that are literals."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found


def test_mono_hydra_s_launch_file_gives_the_node_arguments_that_it_has():
    example, node = (constants(path) for path in LAUNCHERS[:2])
    assert example["NODE"].keys() <= node["OVERRIDES"].keys() | {"use_sim_time", "params_file"}
    for name in ("image_topic", "camera_info_topic"):
        assert example["NODE"][name] == defaults()[name]
    assert example["STACK"] == {"use_perception": "false"}


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_launch_files_define_what_ros2_launch_calls(path):
    functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert "generate_launch_description" in functions


def test_arguments_of_the_node_s_launch_file_are_parameters():
    assert constants(LAUNCHERS[1])["OVERRIDES"].keys() <= defaults().keys()


def test_the_camera_s_launch_file_gives_the_node_parameters_that_it_has():
    path = LAUNCHERS[2]
    given = constants(path)["PERCEPTION"]
    assert given.keys() <= defaults().keys()
    settings = Settings(**{**defaults(), "bundle": "here", **given})
    # v4l2_camera publishes image_raw and camera_info in its namespace.
    assert settings.image_topic == "/camera/image_raw" and settings.camera_info_topic == "/camera/camera_info"
    assert 'namespace="camera"' in path.read_text()


@pytest.mark.ros2
def test_the_node_starts_with_the_parameters_of_the_camera_s_launch_file(ros, tiny_bundle):
    with ros.node(tiny_bundle, **constants(LAUNCHERS[2])["PERCEPTION"]) as node:
        assert ros.interrupt(node) == 0
    assert "self-test passed" in ros.log()
