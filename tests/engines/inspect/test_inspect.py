"""Test that the figures of a graph agree with its network's, and that reports name what could not be read."""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from engines.inspect.inspect import compare, inspect, render, render_comparison
from engines.precision.calibration import Calibration, select_frames
from engines.precision.convert import to_fp8, to_fp16
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.model import build_model
from m2h_deploy.profiling.costs import node_costs, total, uncounted
from tests.engines.graphs import SIDE, frames, quantize_elsewhere, small_graph


def _printed(renderables) -> str:
    console = Console(file=io.StringIO(), width=200)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def _one_node(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]], weights: dict[str, tuple[int, ...]]):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    constants = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", values, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(
    ("node", "shapes", "weights", "macs"),
    [
        (("Conv", {"group": 2, "pads": [1, 1, 1, 1]}), {"x": (1, 4, 8, 8)}, {"w": (6, 2, 3, 3)}, 6 * 64 * 2 * 9),
        (("ConvTranspose", {"strides": [2, 2]}), {"x": (1, 4, 8, 8)}, {"w": (4, 6, 2, 2)}, 4 * 64 * 6 * 4),
        (("Gemm", {"transA": 1}), {"x": (5, 7)}, {"w": (5, 3)}, 7 * 5 * 3),
        (("MatMul", {}), {"x": (2, 3, 4, 5), "w": (2, 3, 5, 6)}, {}, 2 * 3 * 4 * 5 * 6),
        (("Einsum", {"equation": "bhid,bhjd->bhij"}), {"x": (2, 3, 4, 5), "w": (2, 3, 6, 5)}, {}, 2 * 3 * 4 * 5 * 6),
        (("Einsum", {"equation": "...ij,jk"}), {"x": (2, 3, 4, 5), "w": (5, 6)}, {}, 2 * 3 * 4 * 5 * 6),
        (("Add", {}), {"x": (2, 3), "w": (2, 3)}, {}, 0),
    ],
)
def test_macs_of_each_operator_are_its_products(node, shapes, weights, macs):
    kind, attributes = node
    model = _one_node(helper.make_node(kind, ["x", "w"], ["y"], **attributes), shapes, weights)
    (cost,) = node_costs(model)
    assert cost.macs == macs


def test_a_node_moves_its_inputs_weights_and_outputs():
    model = _one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (4, 5)}, {"w": (5, 6)})
    (cost,) = node_costs(model)
    assert cost.nbytes == 4 * (4 * 5 + 5 * 6 + 4 * 6)
    assert [tensor.size for tensor in cost.weights] == [30]


@pytest.mark.slow
def test_macs_equal_pytorchs_count(tiny_onnx, tiny_model, tmp_path):
    report = inspect(tiny_onnx)
    if report["metadata"]["m2h.form"] != "reference":
        from export import export_onnx

        report = inspect(export_onnx(tiny_model, tmp_path / "r.onnx", height=112, width=140, form="reference").path)
    with torch.device("meta"):
        model = build_model("m2h-tiny").eval()
        image = torch.zeros(1, 3, 112, 140)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert 2 * report["macs"] == counter.get_total_flops()
    assert report["uncounted"] == {}
    assert sum(row["macs"] for row in report["blocks"]) == report["macs"]
    assert sum(row["bytes_moved"] for row in report["blocks"]) == report["bytes_moved"]
    assert sum(row["parameters"] for row in report["blocks"]) == report["parameters"]


def test_figures_are_by_block_of_the_paper(tiny_onnx):
    report = inspect(tiny_onnx)
    blocks = {row["block"]: row for row in report["blocks"]}
    assert {"backbone", "mstr", "msf.depth", "wmca", "context.depth", "heads.depth", "heads.edges"} <= set(blocks)
    assert blocks["backbone"]["weight_share"] == {"float32": 1.0, "float16": 0.0, "int8": 0.0, "fp8": 0.0}
    assert report["metadata"]["m2h.variant"] == "m2h-tiny"
    assert report["dynamic"] == {}
    json.dumps(report)
    text = _printed(render(report))
    assert "heads.depth" in text
    assert "GMAC" in text


def test_functions_are_counted_inside(tmp_path):
    plain, called = small_graph(), small_graph(functions=True)
    onnx.save(called, tmp_path / "called.onnx")
    report = inspect(tmp_path / "called.onnx")
    assert report["functions"] == ["m2h::Swap"]
    assert report["nodes"]["m2h::Swap"] == 1
    assert "m2h::Swap" not in report["nodes_inlined"]
    assert sum(report["nodes_inlined"].values()) > sum(report["nodes"].values())
    assert report["macs"] == total(cost.macs for cost in node_costs(plain))
    assert "unknown" not in {row["block"] for row in report["blocks"]}


def test_a_dynamic_batch_is_named_and_counted_for_one_frame(tmp_path):
    onnx.save(small_graph(batch="batch"), tmp_path / "free.onnx")
    onnx.save(small_graph(), tmp_path / "one.onnx")
    free, one = inspect(tmp_path / "free.onnx"), inspect(tmp_path / "one.onnx")
    assert free["dynamic"] == {"image": ["batch"], "depth": ["batch"], "semantics": ["batch"]}
    assert free["inputs"]["image"] == ["batch", 3, SIDE, SIDE]
    assert (free["macs"], free["bytes_moved"]) == (one["macs"], one["bytes_moved"])
    assert "dynamic" in _printed(render(free))


def test_unknown_shapes_are_reported_and_not_guessed():
    model = _one_node(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": (4, 5)}, {"w": (5, 6)})
    model.graph.node.insert(0, helper.make_node("Unheard", ["x"], ["z"], domain="nowhere"))
    model.graph.node[1].input[0] = "z"
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    assert uncounted(node_costs(model)) == {"nowhere::Unheard": 1, "MatMul": 1}


def test_precision_is_reported_by_block(tmp_path):
    onnx.save(small_graph(), tmp_path / "full.onnx")
    to_fp16(tmp_path / "full.onnx", tmp_path / "half.onnx")
    full, half = inspect(tmp_path / "full.onnx"), inspect(tmp_path / "half.onnx")
    msf = {row["block"]: row for row in half["blocks"]}["msf.depth"]
    assert msf["weight_share"]["float16"] == 1.0
    assert msf["node_share"]["float16"] > 0
    assert half["macs"] == full["macs"]
    rows = {row["figure"]: row for row in compare(full, half)}
    assert rows["macs"]["ratio"] == 1.0
    assert rows["bytes_moved"]["ratio"] < 1
    assert rows["float32 weights"]["a"] == full["parameters"]


def test_int8_layers_count_as_int8(tmp_path):
    onnx.save(small_graph(), tmp_path / "full.onnx")
    quantize_elsewhere(tmp_path / "full.onnx", tmp_path / "int8.onnx", np.ones((1, 3, SIDE, SIDE), np.float32))
    full, quantized = inspect(tmp_path / "full.onnx"), inspect(tmp_path / "int8.onnx")
    msf = {row["block"]: row for row in quantized["blocks"]}["msf.depth"]
    assert msf["weight_share"]["int8"] == 1.0
    assert msf["node_share"]["int8"] > 0
    assert quantized["macs"] == full["macs"]
    assert quantized["weights"]["int8"] == 16 * 16 * 9 + 3 * 16 * 9 + 16 * 16 + 16 + 4 * 16


def test_fp8_layers_count_as_fp8(tmp_path):
    onnx.save(small_graph(channels=64), tmp_path / "full.onnx")
    calibration = Calibration(select_frames(frames(3), count=1))
    to_fp8(tmp_path / "full.onnx", tmp_path / "fp8.onnx", calibration=calibration)
    full, quantized = inspect(tmp_path / "full.onnx"), inspect(tmp_path / "fp8.onnx")
    msf = {row["block"]: row for row in quantized["blocks"]}["msf.depth"]
    assert msf["weight_share"]["fp8"] == 1.0
    assert msf["node_share"]["fp8"] > 0
    assert (quantized["precision"], quantized["macs"]) == ("fp8", full["macs"])
    assert quantized["weights"]["fp8"] == 64 * 64 * 9 + 64 * 64
    assert quantized["weights"]["int8"] == 0


def test_the_graph_that_onnx_runtime_fused_computes_the_same(tiny_bundle, tiny_onnx):
    bundle, graph = inspect(tiny_bundle), inspect(tiny_onnx)
    assert bundle["manifest"]["model"]["variant"] == "m2h-tiny"
    assert sum(bundle["sizes"].values()) == bundle["bytes"]
    assert bundle["engine"]["uncounted"] == {}
    assert bundle["engine"]["macs"] == graph["macs"]
    assert sum(bundle["engine"]["nodes"].values()) < sum(graph["nodes"].values())
    rows = {row["figure"]: row for row in compare(graph, bundle)}
    assert rows["macs"]["ratio"] == 1.0
    assert rows["engine"]["a"] is None
    json.dumps([bundle, *rows.values()])
    text = _printed(render_comparison(list(rows.values()), "model.onnx", "bundle"))
    assert "GMAC" in text
    assert "model.onnx" in text
    assert "onnxruntime" in _printed(render(bundle))


@pytest.mark.parametrize(("kind", "file"), [("tensorrt", "model.plan"), ("openvino", "model.xml")])
def test_an_engine_that_cannot_be_read_here_is_a_note_beside_the_manifest(tiny_bundle, tmp_path, kind, file):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    manifest = load_bundle(tmp_path / "b").manifest
    (tmp_path / "b" / manifest.engine.file).unlink()
    (tmp_path / "b" / file).write_bytes(b"no engine")
    engine = manifest.engine.model_copy(update={"kind": kind, "file": file})
    files = {file: file_sha256(tmp_path / "b" / file)}
    write_manifest(tmp_path / "b", manifest.model_copy(update={"engine": engine, "files": files}))
    report = inspect(tmp_path / "b")
    assert report["engine"]["note"].startswith("layers not read: ")
    assert report["manifest"]["engine"]["kind"] == kind
    assert "not read" in _printed(render(report))


def test_an_openvino_ir_is_counted_by_operation(tiny_onnx, tiny_bundle, tmp_path):
    pytest.importorskip("openvino")
    from engines.openvino import build_openvino

    info = build_openvino(tiny_onnx, tmp_path, precision="fp32")
    files = {file.name: file_sha256(file) for file in tmp_path.iterdir()}
    manifest = load_bundle(tiny_bundle).manifest
    write_manifest(tmp_path, manifest.model_copy(update={"engine": info, "files": files}))
    report = inspect(tmp_path)
    text = _printed(render_comparison(compare(report, inspect(tiny_bundle)), "ir", "ort"))
    assert not any(re.search(r"\s-(\s|$)", line) for line in text.splitlines()), "a row of what one side cannot have"
    assert "ir has no ONNX graph: operators, weights, MACs and bytes are not compared" in text
    assert {"variant", "input", "bytes"} <= {line.split()[0] for line in text.splitlines() if line.split()}
    layers = report["engine"]["layers"]
    assert layers["Convolution"] > 10
    assert layers["Result"] == 4
    assert "Constant" not in layers
