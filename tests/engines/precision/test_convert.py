"""Test FP16 and INT8 graphs: read them, run them on CPUs, and compare."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, inliner, numpy_helper

from engines.precision.calibration import Calibration, CalibrationFrames, frames_digest, select_frames
from engines.precision.convert import to_fp16, to_int8
from engines.precision.quantization import load_policy
from engines.precision.sensitivity import choose_blocks
from m2h_deploy.blocks import block_of
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from tests.engines.graphs import SIDE, element_types, frames, small_graph

pytest.importorskip("modelopt.onnx.quantization")


@pytest.fixture(scope="module")
def room_frames():
    """Return rooms as inputs of `tiny_onnx`: three for calibration and two for the check."""
    from m2h_deploy.data.rooms.render import render_room

    preprocess = Preprocess(PRESETS["published"], 112, 140)
    rooms = [preprocess(render_room(seed, 0, 112, 140).image).copy() for seed in range(5)]
    return select_frames(rooms, count=3)


@pytest.fixture(scope="module")
def fp16(tiny_onnx, room_frames, tmp_path_factory):
    """Convert `tiny_onnx` to FP16; return the file and its report."""
    path = tmp_path_factory.mktemp("fp16") / "tiny.onnx"
    return path, to_fp16(tiny_onnx, path, frames=room_frames)


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """Convert the small graph to INT8; return the file and its report."""
    folder = tmp_path_factory.mktemp("int8")
    onnx.save(small_graph(), folder / "small.onnx")
    calibration = Calibration(select_frames(frames(6), count=4), "max")
    return folder / "int8.onnx", to_int8(folder / "small.onnx", folder / "int8.onnx", calibration=calibration)


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.onnx"
    onnx.save(small_graph(), path)
    return path


def io_types(proto):
    return {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}


def test_fp16_computes_every_product_outside_the_islands_in_half(fp16):
    path, report = fp16
    proto = onnx.load(path)
    types = element_types(proto)
    islands = {island.node for island in report.islands}
    products = [node for node in proto.graph.node if node.op_type in ("Conv", "MatMul", "ConvTranspose")]
    assert len(products) > 100
    for node in products:
        expected = TensorProto.FLOAT if node.name in islands else TensorProto.FLOAT16
        assert {types[name] for name in node.input if name} == {expected}, node.name


def test_fp16_keeps_reductions_the_depth_output_and_unit_normals_in_float32(fp16):
    path, report = fp16
    proto = onnx.load(path)
    types = element_types(proto)
    for node in proto.graph.node:
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceMean", "ReduceL2", "InstanceNormalization"):
            assert types[node.input[0]] == types[node.output[0]] == TensorProto.FLOAT, node.name
    reasons = Counter(island.reason for island in report.islands)
    assert reasons["depth output"] >= 3
    assert reasons["unit normals"] == 3
    producers = {output: node for node in proto.graph.node for output in node.output}
    assert producers["depth"].op_type != "Cast", "depth is computed in float32 up to the output"


def test_fp16_keeps_inputs_outputs_and_the_metadata(fp16, tiny_onnx):
    before, after = onnx.load(tiny_onnx), onnx.load(fp16[0])
    assert io_types(after) == {TensorProto.FLOAT}
    assert [value.name for value in after.graph.output] == [value.name for value in before.graph.output]
    entries = [{entry.key: entry.value for entry in proto.metadata_props} for proto in (before, after)]
    assert entries[1] == entries[0] | {"m2h.precision": "fp16"}


def test_fp16_is_within_50_decibels_of_float32_on_unseen_frames(fp16):
    assert set(fp16[1].psnr) == {"depth", "semantics", "normals", "edges"}
    assert min(fp16[1].psnr.values()) > 50


def test_int8_quantizes_linear_and_conv_and_nothing_else(int8):
    path, report = int8
    assert set(report.quantized) == {"/msf.depth/resize/Conv", "/context/ffn/MatMul"}
    check_int8(onnx.load(path), report)


def test_the_int8_report_has_calibration_frames_and_psnr(int8):
    _, report = int8
    assert report.calibration.frames == 4
    assert len(report.calibration.frames_sha256) == len(report.calibration.graph_sha256) == 64
    assert set(report.psnr) == {"depth", "semantics"}
    assert min(report.psnr.values()) > 25


@pytest.mark.slow
def test_int8_of_the_whole_network(tiny_onnx, room_frames, tmp_path):
    report = to_int8(tiny_onnx, tmp_path / "int8.onnx", calibration=Calibration(room_frames, "max"))
    check_int8(onnx.load(tmp_path / "int8.onnx"), report)
    assert {block_of(name).split(".")[0] for name in report.quantized} >= {"backbone", "msf", "context", "heads"}
    kept = [name for name in report.quantized if "/final/" in name or "patch_embed" in name or "/gate/" in name]
    assert kept == []
    assert min(report.psnr.values()) > 20


@pytest.mark.slow
def test_int8_of_the_shipped_network_passes_the_gate_of_verify(tmp_path):
    from export import export_onnx
    from m2h_deploy.data.rooms.render import Rooms
    from m2h_deploy.model import load_checkpoint

    model = export_onnx(load_checkpoint("m2h-tiny"), tmp_path / "tiny.onnx", height=224, width=224).path
    preprocess = Preprocess(PRESETS["published"], 224, 224)
    rooms = select_frames([preprocess(room.image).copy() for room in Rooms(12, 4)], count=8)
    report = to_int8(model, tmp_path / "int8.onnx", calibration=Calibration(rooms, "max"))
    assert min(report.psnr.values()) > 30, report.psnr


@pytest.fixture(scope="module", params=["m2h_small", "m2h"])
def published(request, shared, tmp_path_factory):
    """Return the published network with reproducible weights as ONNX, and two real frames as its inputs."""
    import cv2
    import torch

    from export import export_onnx
    from m2h_deploy.model import load_checkpoint
    from tests.golden import filler

    folder = tmp_path_factory.mktemp(request.param)
    weights = {name: torch.from_numpy(value) for name, value in filler.weights(request.param).items()}
    torch.save(weights, folder / "checkpoint.pt")
    source = export_onnx(load_checkpoint(folder / "checkpoint.pt"), folder / "m.onnx").path
    preprocess = Preprocess(PRESETS["published"], 224, 224)
    pictures = sorted((shared / "nyuv2_frames").glob("*.jpg"))
    return source, tuple(preprocess(cv2.imread(str(path))).copy() for path in pictures)


@pytest.mark.slow
def test_the_published_network_in_half_is_within_40_decibels_on_real_frames(published, tmp_path):
    source, real = published
    report = to_fp16(source, tmp_path / "half.onnx", frames=CalibrationFrames(real[:1], real, 0, frames_digest(real)))
    assert min(report.psnr.values()) > 40, report.psnr


@pytest.mark.slow
def test_the_published_network_in_int8_is_within_25_decibels_on_an_unseen_frame(published, tmp_path):
    from m2h_deploy.data.rooms.render import render_room

    source, real = published
    preprocess = Preprocess(PRESETS["published"], 224, 224)
    rooms = (preprocess(render_room(seed, 0, 480, 640).image).copy() for seed in range(7))
    frames = (real[0], *rooms)
    calibration = Calibration(CalibrationFrames(frames, real[1:], 0, frames_digest(frames)))
    report = to_int8(source, tmp_path / "int8.onnx", calibration=calibration)
    print(report.psnr)
    assert len(report.quantized) > 150
    assert min(report.psnr.values()) > 25, report.psnr


def check_int8(proto: onnx.ModelProto, report) -> None:
    """Check that only the quantized layers have Q/DQ, with int8 weights per channel, and the rest is half precision."""
    types = element_types(proto)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    producers = {output: node for node in proto.graph.node for output in node.output}
    islands = {island.node for island in report.islands}
    for node in proto.graph.node:
        dequantized = [name for name in node.input if _is(producers.get(name), "DequantizeLinear")]
        if node.name not in report.quantized:
            assert dequantized == [], node.name
            if node.op_type in ("Conv", "MatMul", "Gelu") and node.name not in islands:
                assert {types[name] for name in node.input if name} == {TensorProto.FLOAT16}, node.name
            continue
        assert node.op_type in ("Conv", "MatMul")
        assert dequantized == list(node.input[:2])
        activation, weight = producers[node.input[0]], producers[node.input[1]]
        assert weights[weight.input[0]].data_type == TensorProto.INT8
        channels = weights[weight.input[0]].dims[0 if node.op_type == "Conv" else 1]
        assert list(weights[weight.input[1]].dims) == [channels]
        assert list(weights[activation.input[1]].dims) in ([], [1])


def _is(node, operator: str) -> bool:
    return node is not None and node.op_type == operator


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_openvino_reads_the_same_file(precision, request):
    openvino = pytest.importorskip("openvino")
    path, _ = request.getfixturevalue(precision)
    side = (112, 140) if precision == "fp16" else (SIDE, SIDE)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    frame = frames(1, *side)[0]
    expected = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": frame})
    for index, want in enumerate(expected):
        got = compiled([frame])[index]
        # Processors without VNNI add products of 8 bits in 16 bits, which saturate differently in the two engines.
        assert np.sqrt(np.mean((got - want) ** 2)) < 0.3 * np.std(want)


def test_fp16_keeps_functions(tmp_path):
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(small_graph(functions=True), source)
    report = to_fp16(source, target, frames=select_frames(frames(3), count=1))
    proto = onnx.load(target)
    assert [node.op_type for node in proto.graph.node if node.domain == "m2h"] == ["Swap"]
    assert [function.name for function in proto.functions] == ["Swap"]
    assert min(report.psnr.values()) > 50
    types = element_types(inliner.inline_local_functions(proto))
    call = next(node for node in proto.graph.node if node.domain == "m2h")
    assert types[call.input[0]] == TensorProto.FLOAT16


def test_openvino_reads_inlined_functions(tmp_path):
    openvino = pytest.importorskip("openvino")
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(small_graph(functions=True), source)
    to_fp16(source, target)
    inlined = tmp_path / "inlined.onnx"
    onnx.save(inliner.inline_local_functions(onnx.load(target)), inlined)
    compiled = openvino.Core().compile_model(inlined, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    frame = frames(1)[0]
    expected = ort.InferenceSession(target, providers=["CPUExecutionProvider"]).run(None, {"image": frame})
    for index, want in enumerate(expected):
        np.testing.assert_allclose(compiled([frame])[index], want, atol=0.02 * np.abs(want).max())


def test_int8_keeps_functions(tmp_path):
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(small_graph(functions=True), source)
    report = to_int8(source, target, calibration=Calibration(select_frames(frames(4), count=2), "max"))
    assert [node.op_type for node in onnx.load(target).graph.node if node.domain == "m2h"] == ["Swap"]
    assert set(report.quantized) == {"/msf.depth/resize/Conv", "/context/ffn/MatMul"}
    assert min(report.psnr.values()) > 25


def test_io_can_be_half_too(small, tmp_path):
    to_fp16(small, tmp_path / "half.onnx", io="fp16")
    assert io_types(onnx.load(tmp_path / "half.onnx")) == {TensorProto.FLOAT16}


def test_tensors_without_headroom_are_kept_in_float32(tmp_path):
    source = tmp_path / "large.onnx"
    onnx.save(small_graph(scale=60), source)
    report = to_fp16(source, tmp_path / "out.onnx", frames=select_frames(frames(3), count=1))
    assert "/msf.depth/resize/Conv" in {island.node for island in report.islands if island.reason == "range"}
    assert min(report.psnr.values()) > 40


def test_weights_beyond_half_are_reported_and_their_nodes_kept(tmp_path):
    proto = small_graph()
    for index, value in ((1, 1e5), (2, 1e-9)):  # the Conv of msf.depth overflows, one weight of the Linear vanishes
        array = numpy_helper.to_array(proto.graph.initializer[index]).copy()
        array.flat[0] = value
        proto.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, proto.graph.initializer[index].name))
    onnx.save(proto, tmp_path / "in.onnx")
    report = to_fp16(tmp_path / "in.onnx", tmp_path / "out.onnx")
    risks = {(risk.initializer, risk.kind): risk for risk in report.risks}
    assert risks["w.middle", "overflow"].action == "node kept in float32"
    assert risks["w.linear", "underflow"].values == 1
    assert risks["w.linear", "underflow"].action == "rounded to FP16's smallest value"
    kept = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert numpy_helper.to_array(kept["w.middle"]).max() == np.float32(1e5)


def test_a_policy_file_overrides_what_is_quantized(small, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"quantize": ["msf.depth", "heads.*"], "keep": ["/heads.depth/*"]}))
    calibration = Calibration(select_frames(frames(4), count=2), "max")
    report = to_int8(small, tmp_path / "out.onnx", calibration=calibration, policy=load_policy(policy))
    assert set(report.quantized) <= {"/msf.depth/resize/Conv", "/heads.semantics/final/Conv"}
    assert "/msf.depth/resize/Conv" in report.quantized


def test_weights_alone_can_be_int8(small, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"weights_only": true}')
    calibration = Calibration(select_frames(frames(4), count=2))
    report = to_int8(small, tmp_path / "out.onnx", calibration=calibration, policy=load_policy(policy))
    proto = onnx.load(tmp_path / "out.onnx")
    assert report.quantized == ("/context/ffn/MatMul",)
    assert Counter(node.op_type for node in proto.graph.node)["QuantizeLinear"] == 0
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    (dequantize,) = (node for node in proto.graph.node if node.op_type == "DequantizeLinear")
    assert stored[dequantize.input[0]].data_type == TensorProto.INT8
    assert "w.linear" not in stored
    assert element_types(proto)[dequantize.output[0]] == TensorProto.FLOAT16
    assert min(report.psnr.values()) > 40


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ('{"keep": "wmca"}', "expected"),
        ('{"skip": []}', "expected"),
        ('{"weights_only": 1}', "expected"),
        ('{"weights_only": true, "quantize": ["msf.depth"]}', "leaves no layer"),
        ('{"keep": ["wcma"]}', "'wcma' matches nothing in the graph; its blocks are backbone, msf.depth, wmca"),
        ('{"quantize": ["/wmca/norm/*"]}', "leaves no layer"),
        pytest.param("[" * 100_000, "not JSON: maximum recursion depth exceeded", id="nested lists"),
        pytest.param('{"keep":' * 100_000, "not JSON: maximum recursion depth exceeded", id="nested objects"),
    ],
)
def test_an_invalid_policy_gives_a_one_line_error(small, tmp_path, content, said):
    policy = tmp_path / "policy.json"
    policy.write_text(content)
    with pytest.raises(M2HError) as error:
        calibration = Calibration(select_frames(frames(3), count=1))
        to_int8(small, tmp_path / "out.onnx", calibration=calibration, policy=load_policy(policy))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.json", "small.onnx"]


def test_blocks_that_lose_too_much_accuracy_stay_in_half():
    proto = small_graph()
    ranges = {"b": (0.0, 3.0), "e": (-0.05, 0.05)}  # the Linear's input saturates, so INT8 is inaccurate
    layers = ["/msf.depth/resize/Conv", "/context/ffn/MatMul"]
    chosen = choose_blocks(proto, layers, ranges, frames(1), 30)
    assert chosen == ("/msf.depth/resize/Conv",)
    with pytest.raises(M2HError, match="no block can be quantized"):
        choose_blocks(proto, layers, ranges, frames(1), 200)


@pytest.mark.parametrize("make", ["missing", "garbage", "half"])
def test_only_float32_graphs_are_converted(make, small, tmp_path):
    source = tmp_path / "source.onnx"
    if make == "garbage":
        source.write_bytes(b"\x08\x01 no graph")
    if make == "half":
        to_fp16(small, source)
    with pytest.raises(M2HError) as error:
        to_fp16(source, tmp_path / "out.onnx")
    assert "source.onnx" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out.onnx").exists()
