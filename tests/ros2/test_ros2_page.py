"""Test the commands of docs/ros2.md, and install the ROS package as colcon does."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.pages import REPOSITORY, Page

PACKAGE = REPOSITORY / "ros2"


@pytest.mark.ros2
def test_the_page_s_commands_work_from_top_to_bottom(tmp_path):
    Page("ros2.md").run(tmp_path, count=2)
    assert (tmp_path / "bundle" / "manifest.json").is_file()
    assert sorted(path.name for path in (tmp_path / "hydra").iterdir()) == ["m2h.onnx", "m2h_onnx.yaml"]


def test_package_xml_setup_and_resource_marker_agree():
    package = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert package.findtext("name") == "m2h_perception"
    assert package.findtext("export/build_type") == "ament_python"
    assert (PACKAGE / "resource" / "m2h_perception").is_file()
    setup = (PACKAGE / "setup.py").read_text()
    assert f'version="{package.findtext("version")}"' in setup
    for name in re.findall(r"\[f\"(.*?)\"\]", setup):
        assert (PACKAGE / name.replace("{NAME}", "m2h_perception")).is_file()
    assert "perception_node = m2h_perception.node:main" in setup
    assert "perception_lifecycle_node = m2h_perception.lifecycle:main" in setup
