"""Test the commands of docs/clusters.md from top to bottom."""

from __future__ import annotations

import json

import pytest

from tests.pages import Page

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow


def test_the_page_s_commands_work_from_top_to_bottom(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    try:
        Page("clusters.md").run(tmp_path, count=3, change=lambda text: text.replace("127.0.0.1:6379", cluster.address))
    finally:
        cluster.shutdown()
    for folder in ("out", "far"):
        assert len(list((tmp_path / folder).glob("*_labels.png"))) == 12
    assert list((tmp_path / "table").glob("*.parquet"))
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["parity"]["data"]["frames"] == 12
