"""Test FP8 graphs: their Q/DQ nodes, their outputs on a CPU, and the bundles that are built from them."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from engines import Lowering, build_bundle
from engines.precision.calibration import Calibration, select_frames
from engines.precision.convert import to_fp8, to_int8
from engines.precision.fp8 import E4M3_MAX, insert_fp8
from engines.precision.quantization import QuantPolicy
from engines.tensorrt import TensorRtOptions, build_plan
from m2h_deploy.onnx_graph.precision import graph_precision
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from tests.commands import refused
from tests.engines.graphs import SIDE, element_types, frames, set_metadata, small_graph

pytest.importorskip("modelopt.onnx.quantization")

RTX = "tensorrt-rtx"
LAYERS = ("/msf.depth/resize/Conv", "/context/ffn/MatMul")


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Save a small graph whose layers are wide enough for FP8."""
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(small_graph(channels=64, scale=0.05), path)
    return path


@pytest.fixture(scope="module")
def calibration():
    return Calibration(select_frames(frames(6), count=4))


@pytest.fixture(scope="module")
def fp8(wide, calibration, tmp_path_factory):
    """Convert the wide graph to FP8; return the file and its report."""
    path = tmp_path_factory.mktemp("fp8") / "fp8.onnx"
    return path, to_fp8(wide, path, calibration=calibration)


def test_wide_layers_get_e4m3_and_the_rest_is_half(fp8):
    path, report = fp8
    assert report.quantized == LAYERS
    proto = onnx.load(path)
    types = element_types(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    producers = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        sources = [producers[name].op_type if name in producers else "" for name in node.input]
        if node.name not in LAYERS:
            assert "DequantizeLinear" not in sources, f"{node.name} reads a rounded value"
            if node.op_type in ("Conv", "MatMul") and node.name not in {island.node for island in report.islands}:
                assert {types[name] for name in node.input} == {TensorProto.FLOAT16}, node.name
            continue
        activation, weight = producers[node.input[0]], producers[node.input[1]]
        quantize = producers[activation.input[0]]
        assert (quantize.op_type, stored[quantize.input[2]].data_type) == ("QuantizeLinear", TensorProto.FLOAT8E4M3FN)
        assert types[quantize.output[0]] == types[weight.input[0]] == TensorProto.FLOAT8E4M3FN
        assert types[activation.output[0]] == types[weight.output[0]] == TensorProto.FLOAT16
        assert list(stored[weight.input[1]].dims) == [64], "one scale for each output channel"
        assert list(stored[quantize.input[1]].dims) == [], "one scale for the activation"


def test_the_report_has_the_frames_and_the_psnr(fp8):
    _, report = fp8
    assert (report.precision, report.calibration.method, report.calibration.frames) == ("fp8", "max", 4)
    assert report.psnr.keys() == {"depth", "semantics"}
    assert min(report.psnr.values()) > 25


def test_narrow_layers_and_those_that_the_policy_keeps_are_not_quantized(wide, calibration, tmp_path):
    onnx.save(small_graph(channels=32), tmp_path / "narrow.onnx")
    said = refused(to_fp8, tmp_path / "narrow.onnx", tmp_path / "out.onnx", calibration=calibration)
    assert "no layer that the policy quantizes has 64 input and output channels" in said
    policy = QuantPolicy(quantize=("msf.depth", "heads.*"))
    report = to_fp8(wide, tmp_path / "out.onnx", calibration=calibration, policy=policy)
    assert report.quantized == LAYERS[:1]


def test_a_least_psnr_keeps_blocks_in_half(wide, calibration, fp8, tmp_path):
    wanted = max(fp8[1].psnr.values()) + 1
    report = to_fp8(wide, tmp_path / "out.onnx", calibration=calibration, min_psnr=wanted)
    assert len(report.quantized) == 1


def test_values_are_rounded_to_e4m3_and_a_relu_before_the_rounding_stays():
    """ONNX Runtime's optimizer removes that Relu, which leaves the negative values."""
    proto = small_graph(channels=64)
    rounded = insert_fp8(proto, LAYERS, {"b": (0.0, 3.0), "e": (-5.0, 5.0)})
    frame = frames(1)[0]
    plain, optimized = (
        run_session(cpu_session(rounded, optimize=level), frame)  # type: ignore[arg-type]
        for level in ("none", "all")
    )
    for name, values in plain.items():
        np.testing.assert_allclose(optimized[name], values, atol=0.05 * np.abs(values).max())
    weights = {tensor.name: tensor for tensor in rounded.graph.initializer}
    before = numpy_helper.to_array({tensor.name: tensor for tensor in proto.graph.initializer}["w.linear"])
    stored = np.frombuffer(weights["w.linear_fp8"].raw_data, np.uint8).reshape(64, 64)
    assert (stored & 0x7F).max() == 0x7E, f"the largest weight of a column is {E4M3_MAX:g}, and none is NaN"
    scales = numpy_helper.to_array(weights["w.linear_scale"])
    np.testing.assert_allclose(scales * E4M3_MAX, np.abs(before).max(axis=0), rtol=1e-3)


def test_scales_are_normal_numbers_of_half_precision():
    tiny = small_graph(channels=64, scale=1e-6)
    stored = {
        tensor.name: tensor for tensor in insert_fp8(tiny, LAYERS, {"b": (0.0, 1e9), "e": (0.0, 0.0)}).graph.initializer
    }
    for name in ("b_scale", "e_scale", "w.linear_scale", "w.middle_scale"):
        scales = numpy_helper.to_array(stored[name])
        assert np.isfinite(scales.astype(np.float16)).all()
        assert scales.min() >= np.finfo(np.float16).tiny
        np.testing.assert_array_equal(scales.astype(np.float16), scales)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    return folder


def test_a_bundle_records_the_layers_the_psnr_and_targets_that_compute_in_fp8(wide, pictures, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    graph = tmp_path / "kept.onnx"
    lowering = Lowering(str(pictures), count=2)
    bundle = build_bundle(wide, tmp_path / "a", engine=RTX, precision="fp8", lowering=lowering, graph=graph)
    manifest = bundle.manifest
    assert (manifest.engine.precision, manifest.engine.targets) == ("fp8", ("8.9", "12.0"))
    assert manifest.engine.options["notes"] == []
    assert "--computeCapabilities=89,120" in manifest.engine.options["trtexec"]
    assert (manifest.lowering.fp8_layers, manifest.lowering.int8_layers) == (2, 0)
    assert manifest.lowering.psnr.keys() == {"depth", "semantics"}
    assert manifest.calibration.frames == 2
    again = build_bundle(graph, tmp_path / "b", engine=RTX, options=TensorRtOptions(targets=("12.0",))).manifest
    assert (again.engine.precision, again.engine.targets) == ("fp8", ("12.0",))
    assert again.self_test == manifest.self_test


def test_a_graph_that_is_fp8_already_is_refused_where_nothing_computes_in_fp8(fp8, tmp_path):
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        assert "no CPU computes in FP8" in refused(build_bundle, fp8[0], tmp_path / "bundle", engine=engine)
    pytest.importorskip("tensorrt_rtx")
    options = TensorRtOptions(targets=("8.6",))
    said = refused(build_bundle, fp8[0], tmp_path / "bundle", engine=RTX, options=options)
    assert "does not compute in FP8" in said
    assert said == refused(build_plan, fp8[0], tmp_path / "m.plan", flavor=RTX, options=options)


def test_metadata_that_contradicts_fp8_is_refused(fp8, tmp_path):
    proto = onnx.load(fp8[0])
    set_metadata(proto, "m2h.precision", "int8")
    onnx.save(proto, tmp_path / "m.onnx")
    assert "is fp8 by its nodes" in refused(build_bundle, tmp_path / "m.onnx", tmp_path / "bundle", engine=RTX)


@pytest.mark.slow
def test_the_shipped_network_is_as_good_in_fp8_as_in_int8_and_compiles(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    from export import export_onnx
    from m2h_deploy.data.rooms.render import Rooms
    from m2h_deploy.model import load_checkpoint

    model = export_onnx(load_checkpoint("m2h-tiny"), tmp_path / "tiny.onnx", height=224, width=224).path
    preprocess = Preprocess(PRESETS["published"], 224, 224)
    rooms = select_frames([preprocess(room.image).copy() for room in Rooms(16, 4)], count=8, held_out=8)
    int8 = to_int8(model, tmp_path / "int8.onnx", calibration=Calibration(rooms))
    fp8 = to_fp8(model, tmp_path / "fp8.onnx", calibration=Calibration(rooms))
    assert len(fp8.quantized) == 24
    assert all(fp8.psnr[name] >= int8.psnr[name] for name in int8.psnr), (fp8.psnr, int8.psnr)
    assert graph_precision(onnx.load(tmp_path / "fp8.onnx")) == "fp8"
    for target in ("8.9", "12.0"):
        options = TensorRtOptions(targets=(target,))
        record = build_plan(tmp_path / "fp8.onnx", tmp_path / "m.plan", flavor=RTX, options=options)
        assert (record.precision, record.fused_attention, record.notes) == ("fp8", 8, ())
