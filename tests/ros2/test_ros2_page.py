"""The commands of docs/ros2.md work, and the ROS package installs as colcon installs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "ros2"


def test_the_page_s_commands_work_from_top_to_bottom(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "m2h-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import cli; cli.main()" "$@"\n')
    (programs / "m2h-deploy").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / "ros2.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        done = subprocess.run(
            ["bash", "-e", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
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
