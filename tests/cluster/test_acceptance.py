"""Test two thousand rooms on two workers, one of which is killed during the job; and an existing cluster."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from tests.cluster.processes import descendants, kill, workers_of
from tests.commands import launch

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.slow

FRAMES = 2000


@pytest.fixture(scope="module")
def graph(tiny_model, tmp_path_factory) -> Path:
    """Export `tiny_model` at the smallest size, so that many frames take little time."""
    from export import export_onnx

    return export_onnx(tiny_model, tmp_path_factory.mktemp("least") / "model.onnx", height=28, width=28).path


@pytest.fixture
def bundle(graph, tmp_path) -> Path:
    from engines import build_bundle

    return build_bundle(graph, tmp_path / "bundle").path


def numbers(values, place=""):
    """Return every number of nested values, by its path."""
    if isinstance(values, dict):
        return {key: number for name in values for key, number in numbers(values[name], f"{place}.{name}").items()}
    if isinstance(values, list):
        return {key: number for i, item in enumerate(values) for key, number in numbers(item, f"{place}[{i}]").items()}
    return {place: values} if isinstance(values, (int, float)) else {}


def test_two_thousand_rooms_on_two_workers_with_one_killed(bundle, graph, tmp_path):
    rooms = write_multitask_folder(tmp_path / "rooms", Rooms(FRAMES + 1, height=32, width=40))
    listing = rooms / "gt_sets" / "val.txt"
    names = listing.read_text().split()
    listing.write_text("\n".join(names[:-1]))

    def verify(*more: object) -> list[str]:
        return launch("verify", bundle, "--reference", graph, "--data", rooms, "--threads", 1, *more)

    on_ray = verify("--ray", "local", "--ray-workers", 2, "--ray-work", tmp_path / "work", "--json")
    alone = subprocess.run(verify("--json"), capture_output=True, text=True, check=False)
    assert alone.returncode == 0, alone.stderr

    process = subprocess.Popen(on_ray, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while measured(tmp_path) < FRAMES // 2 and process.poll() is None:
        time.sleep(0.5)
    assert process.poll() is None
    victims = workers_of(process.pid)
    assert len(victims) == 2
    kill(victims[0])
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert measured(tmp_path) == FRAMES
    assert f"{FRAMES} frames done" in err
    assert "1 workers died and were replaced" in err
    expected = numbers(json.loads(alone.stdout))
    given = numbers(json.loads(out))
    assert given.keys() == expected.keys() and len(expected) > 100
    assert max(abs(given[key] - expected[key]) for key in expected) <= 1e-9

    listing.write_text("\n".join(names))
    again = subprocess.run(on_ray, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert re.search(rf"^1 frames done .*; {FRAMES} reused$", again.stderr, re.MULTILINE)
    assert json.loads(again.stdout)["data"]["frames"] == FRAMES + 1


def measured(folder: Path) -> int:
    return len(list((folder / "work" / "frames").glob("*/*.npz")))


def test_a_job_on_two_nodes_survives_a_lost_node_and_leaves_the_cluster_up(bundle, graph, tmp_path):
    from ray.cluster_utils import Cluster

    rooms = write_multitask_folder(tmp_path / "rooms", Rooms(300, height=32, width=40))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        verify = launch(
            "verify", bundle, "--reference", graph, "--data", rooms, "--ray", cluster.address, "--ray-workers", 2,
            "--ray-work", tmp_path / "work", "--json",
        )  # fmt: skip
        process = subprocess.Popen(verify, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while measured(tmp_path) < 40 and process.poll() is None:
            time.sleep(0.2)
        assert process.poll() is None
        cluster.remove_node(second, allow_graceful=False)
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert json.loads(out)["data"]["frames"] == 300
        assert measured(tmp_path) == 300
        assert cluster.head_node.all_processes["raylet"][0].process.poll() is None
    finally:
        family = descendants(cluster.head_node.all_processes["gcs_server"][0].process.pid)
        cluster.shutdown()
    assert not set(family) & set(descendants(1))
