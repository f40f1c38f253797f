"""Test that an engine's layers are summed by the paper's blocks."""

from __future__ import annotations

import json

import pytest

from engines import build_bundle
from m2h_deploy.backends import BackendOptions, LayerTime
from m2h_deploy.backends.onnxruntime import read_events
from m2h_deploy.backends.tensorrt_profile import layer_names
from m2h_deploy.blocks import blocks_in
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.profiling.layers import (
    RUNS,
    BlockCost,
    blocks_of_run,
    profile_layers,
    summarize_layers,
)
from m2h_deploy.profiling.roofline import Roofline, measure_roofline


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def bundle(request, tiny_onnx, tiny_bundle, tmp_path_factory):
    if request.param == "onnxruntime":
        return load_bundle(tiny_bundle)
    pytest.importorskip("openvino")
    return build_bundle(tiny_onnx, tmp_path_factory.mktemp("openvino") / "tiny", engine="openvino")


def test_every_block_of_the_graph_has_a_time(bundle, tiny_onnx):
    runs = profile_layers(bundle, BackendOptions(threads=1))
    profile = summarize_layers("tiny", runs)
    assert profile.runs == len(runs) == RUNS
    found = {block.block: block for block in profile.blocks}
    computing = {block for block in blocks_in(read_onnx(tiny_onnx)) if block not in ("unknown", "network")}
    assert computing <= set(found)
    assert set(found) <= {*computing, "network"}
    assert all(found[block].milliseconds > 0 for block in computing)
    assert sum(block.share for block in profile.blocks) == pytest.approx(1)
    # OpenVINO leaves out a layer that took less than a microsecond, so runs may differ.
    assert sum(block.layers for block in profile.blocks) == len(runs[-1])


def test_a_layer_without_a_block_joins_the_previous_or_else_the_next_one():
    names = ["Reorder", "/backbone/a/Conv", "MVN_495", "/wmca/x/MatMul", "gemm_reshape", "/heads.depth/y/Conv"]
    run = [LayerTime(name, "", 1.0) for name in names]
    assert blocks_of_run(run) == ["backbone", "backbone", "backbone", "wmca", "wmca", "heads.depth"]
    assert blocks_of_run([LayerTime("a", "", 1.0)]) == ["unknown"]


def test_figures_are_medians_with_the_machines_limits():
    runs = [[LayerTime("/a/x/Conv", "Conv", t), LayerTime("/b/y/Add", "Add", 1.0)] for t in (3.0, 9.0, 4.0)]
    roof = Roofline(gflops=100.0, gigabytes=10.0, threads=1, threads_held=True)
    costs = {"a": BlockCost(macs=100_000_000, nbytes=1_000_000), "b": BlockCost(macs=0, nbytes=5_000_000)}
    a, b = summarize_layers("s", runs, costs, roof).blocks
    assert (a.milliseconds, a.share, a.layers) == (4.0, 0.8, 1)
    assert a.least_ms == pytest.approx(2.0)  # 2e8 operations at 1e11 a second; its bytes need only 0.1 ms
    assert a.of_roofline == pytest.approx(0.5)
    assert b.least_ms == pytest.approx(0.5)  # bytes only
    assert summarize_layers("s", runs, None, roof).blocks[0].of_roofline is None


def test_the_slowest_layers_come_first():
    run = [LayerTime(f"/a/{index}/Conv", "Conv", float(index)) for index in range(20)]
    assert [layer.milliseconds for layer in summarize_layers("s", [run]).slowest] == [
        float(i) for i in range(19, 9, -1)
    ]


def test_onnxruntimes_events_are_split_into_runs_by_time():
    def node(name, ts, dur):
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": "Conv"}}

    events = [
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5},
        node("/b/x/Conv", 30, 1000),
        node("/a/x/Conv", 20, 500),
        {"cat": "Session", "name": "model_run", "ts": 10, "dur": 1100},
        node("/a/x/Conv", 2020, 700),
        {"cat": "Node", "name": "/a/x/Conv_fence_before", "ts": 2010, "dur": 3},
        {"cat": "Session", "name": "model_run", "ts": 2000, "dur": 900},
    ]
    assert [[(layer.name, layer.milliseconds) for layer in run] for run in read_events(events)] == [
        [("/a/x/Conv", 0.5), ("/b/x/Conv", 1.0)],
        [("/a/x/Conv", 0.7)],
    ]


def test_tensorrts_layers_are_named_after_the_graphs_nodes():
    layers = [
        {"Name": "__myl_Conv_0", "Metadata": "[ONNX Layer: /wmca/reduce/Conv]\x1e[ONNX Layer: /wmca/reduce/Relu]"},
        {"Name": "__myl_Move_1", "Metadata": ""},
        "only a name",
    ]
    assert layer_names(json.dumps({"Layers": layers})) == {
        "__myl_Conv_0": "/wmca/reduce/Conv",
        "__myl_Move_1": "__myl_Move_1",
    }
    assert layer_names("no JSON") == {}


def test_the_roofline_uses_the_measured_rates():
    roof = measure_roofline(1)
    assert roof.gflops > 0
    assert roof.gigabytes > 0
    assert roof.least_ms(int(roof.gflops * 1e9) // 2, 0) == pytest.approx(1000, rel=1e-3)
    assert roof.least_ms(0, int(roof.gigabytes * 1e9)) == pytest.approx(1000, rel=1e-3)
