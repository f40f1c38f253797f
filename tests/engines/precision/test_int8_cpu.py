"""Test INT8 as CPU engines want it: which layers are quantized, with which types, by which tool, and how exactly."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from engines import OnnxRuntimeOptions, OpenVinoOptions
from engines.precision.calibration import Calibration, select_frames
from engines.precision.convert import to_int8
from engines.precision.quantization import QuantPolicy, load_policy
from engines.registry import engine_builder
from m2h_deploy.onnx_graph.precision import graph_precision
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from tests.commands import refused
from tests.engines.graphs import element_types, frames, small_graph

#: All layers that can be quantized: without a policy, the default keeps the ends in float.
EVERYTHING = QuantPolicy(keep=())


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "small.onnx"
    onnx.save(small_graph(scale=0.3), file)
    return file


@pytest.fixture
def calibration():
    return Calibration(select_frames(frames(8), count=5, held_out=2))


@pytest.mark.parametrize("tool", ["onnxruntime", "nncf"])
def test_a_cpu_gets_uint8_activations_int8_weights_and_float32_around(source, tmp_path, calibration, tool):
    report = to_int8(source, tmp_path / "int8.onnx", calibration=calibration, tool=tool, policy=EVERYTHING)
    proto = onnx.load(tmp_path / "int8.onnx")
    types = element_types(proto)
    assert onnx.TensorProto.FLOAT16 not in types.values()
    assert graph_precision(proto) == "int8"
    assert {"/msf.depth/resize/Conv", "/context/ffn/MatMul", "/heads.depth/final/Conv"} <= set(report.quantized)
    producers = {node.output[0]: node for node in proto.graph.node}
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.name not in report.quantized:
            continue
        activation, weight = (producers[name] for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert types[activation.input[0]] in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
        kind = initializers.get(weight.input[0])
        assert kind is None or kind.data_type == onnx.TensorProto.INT8
    assert min(report.psnr.values()) > 25


@pytest.mark.parametrize("tool", ["onnxruntime", "nncf"])
def test_a_policy_decides_which_layers_of_a_cpu_engine_are_int8(source, tmp_path, calibration, tool):
    policy = QuantPolicy(quantize=("context", "msf.*"), keep=())
    report = to_int8(source, tmp_path / "int8.onnx", calibration=calibration, tool=tool, policy=policy)
    assert set(report.quantized) == {"/msf.depth/resize/Conv", "/context/ffn/MatMul"}


def test_the_graph_for_a_cpu_is_nearer_to_float32_than_its_smallest_step(source, tmp_path, calibration):
    to_int8(source, tmp_path / "int8.onnx", calibration=calibration, tool="onnxruntime", policy=EVERYTHING)
    exact, rounded = cpu_session(small_graph(scale=0.3)), cpu_session(onnx.load(tmp_path / "int8.onnx"))
    for frame in calibration.frames.held_out:
        a, b = run_session(exact, frame)["semantics"], run_session(rounded, frame)["semantics"]
        assert np.abs(a - b).mean() < 0.05 * np.abs(a).max()
        assert not np.array_equal(a, b)


def test_each_engine_has_its_own_tool():
    openvino, onnxruntime, tensorrt = (engine_builder(kind) for kind in ("openvino", "onnxruntime", "tensorrt-rtx"))
    assert openvino.lowering_tool(OpenVinoOptions(), "int8") == "nncf"
    assert onnxruntime.lowering_tool(OnnxRuntimeOptions(), "int8") == "onnxruntime"
    assert onnxruntime.lowering_tool(OnnxRuntimeOptions(provider="cuda"), "fp16") == "modelopt"
    assert tensorrt.lowering_tool(tensorrt.options(), "int8") == "modelopt"
    assert "FP16" in refused(onnxruntime.lowering_tool, OnnxRuntimeOptions(), "fp16")


def test_what_a_cpu_cannot_use_is_refused(source, tmp_path, calibration):
    def lower(**options):
        return refused(to_int8, source, tmp_path / "int8.onnx", calibration=calibration, **options)

    assert "leave io at fp32" in lower(tool="nncf", io="fp16")
    assert "smooth_quant" in lower(tool="onnxruntime", policy=QuantPolicy(smooth_quant=0.5))
    entropy = Calibration(calibration.frames, "entropy")
    assert "use max" in refused(to_int8, source, tmp_path / "int8.onnx", calibration=entropy, tool="nncf")
    assert not (tmp_path / "int8.onnx").exists()


def test_smooth_quant_moves_scales_into_linear_layers(source, tmp_path, calibration):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"quantize": ["context"], "keep": [], "smooth_quant": 0.5}))
    to_int8(source, tmp_path / "smooth.onnx", calibration=calibration, tool="nncf", policy=load_policy(policy))
    plain = QuantPolicy(quantize=("context",), keep=())
    to_int8(source, tmp_path / "plain.onnx", calibration=calibration, tool="nncf", policy=plain)
    smooth, without = (onnx.load(tmp_path / name) for name in ("smooth.onnx", "plain.onnx"))
    assert [node.op_type for node in smooth.graph.node].count("Mul") == 1
    assert [node.op_type for node in without.graph.node].count("Mul") == 0
    assert graph_precision(smooth) == "int8"
