"""The commands of docs/clusters.md work from top to bottom."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


def test_the_page_s_commands_work_from_top_to_bottom(tmp_path):
    from ray.cluster_utils import Cluster

    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "m2h-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "import cli; cli.main()" "$@"\n')
    (programs / "m2h-deploy").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    page = (REPOSITORY / "docs" / "clusters.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        for block in blocks:
            commands = block.replace("127.0.0.1:6379", cluster.address)
            done = subprocess.run(
                ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()
    for folder in ("out", "far"):
        assert len(list((tmp_path / folder).glob("*_labels.png"))) == 12
    assert list((tmp_path / "table").glob("*.parquet"))
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["parity"]["data"]["frames"] == 12
