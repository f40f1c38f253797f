"""Test that a lowered graph is recognized by nodes and weights, and carries what a bundle needs of the float32 one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import Lowering, build_bundle
from m2h_deploy import CheckFailed, Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.errors import install_extra
from m2h_deploy.onnx_graph.precision import graph_precision, read_precision
from m2h_deploy.parity.reference import open_reference
from tests.commands import command_without, refused
from tests.engines.graphs import SIDE, set_metadata, small_graph


def with_node(*node, **attributes) -> onnx.ModelProto:
    proto = small_graph()
    proto.graph.node.append(helper.make_node(*node, **attributes))
    return proto


def with_constant(kind: int) -> onnx.ModelProto:
    value = helper.make_tensor("value", kind, [1], [1.0])
    return with_node("Constant", [], ["constant"], value=value)


def in_a_branch() -> onnx.ModelProto:
    body = helper.make_graph([helper.make_node("Cast", ["depth"], ["y"], to=TensorProto.FLOAT16)], "then", [], [])
    return with_node("If", ["condition"], ["z"], then_branch=body, else_branch=body)


def in_a_function() -> onnx.ModelProto:
    proto = small_graph(functions=True)
    proto.functions[0].node.append(helper.make_node("DequantizeLinear", ["z", "s"], ["w"]))
    return proto


def with_half_weights() -> onnx.ModelProto:
    proto = small_graph()
    tensor = proto.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return proto


def with_half_input() -> onnx.ModelProto:
    proto = small_graph()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


@pytest.mark.parametrize(
    ("make", "precision"),
    [
        (small_graph, "fp32"),
        (lambda: small_graph(functions=True, batch="batch"), "fp32"),
        (with_half_weights, "fp16"),
        (with_half_input, "fp16"),
        (lambda: with_constant(TensorProto.FLOAT16), "fp16"),
        (lambda: with_node("Cast", ["depth"], ["h"], to=TensorProto.FLOAT16), "fp16"),
        (in_a_branch, "fp16"),
        (lambda: with_node("DequantizeLinear", ["q", "s"], ["d"]), "int8"),
        (lambda: with_node("MatMulInteger", ["q", "s"], ["d"]), "int8"),
        (in_a_function, "int8"),
        (lambda: with_constant(TensorProto.FLOAT8E4M3FN), "fp8"),
        (lambda: with_node("QuantizeLinear", ["depth", "s"], ["q"], output_dtype=TensorProto.FLOAT8E4M3FN), "fp8"),
    ],
)
def test_precision_is_read_from_nodes_and_weights(make, precision):
    assert graph_precision(make()) == precision


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT8E5M2, "float8e5m2")])
def test_unsupported_types_are_named(kind, name):
    assert name in refused(graph_precision, with_constant(kind))


def test_metadata_with_another_precision_is_refused():
    proto = with_half_weights()
    set_metadata(proto, "m2h.precision", "int8")
    said = refused(read_precision, proto, "m.onnx")
    assert "m.onnx is fp16" in said
    assert "says int8" in said


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    onnx.save(small_graph(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    return folder


#: An engine that takes each precision here.
ENGINE_OF = {"fp16": "openvino", "int8": "onnxruntime"}


@pytest.fixture(scope="module", params=["fp16", "int8"])
def lowered(request, exported, pictures, tmp_path_factory) -> tuple[str, Path, Path]:
    """Return the precision, the bundle built from the float32 graph, and the lowered graph that was kept."""
    pytest.importorskip("modelopt.onnx.quantization")
    folder = tmp_path_factory.mktemp(request.param)
    count = 4 if request.param == "int8" else None
    bundle = build_bundle(
        exported,
        folder / "bundle",
        engine=ENGINE_OF[request.param],
        precision=request.param,
        lowering=Lowering(str(pictures), count=count),
        graph=folder / "lowered.onnx",
    )
    return request.param, bundle.path, folder / "lowered.onnx"


def build_without(modules: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*command_without(*modules.split(",")), "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_device_without_torch_builds_the_same_bundle_of_the_lowered_graph(lowered, tmp_path):
    precision, before, graph = lowered
    done = build_without("torch,modelopt,nncf", graph, "-o", tmp_path / "bundle", "--engine", ENGINE_OF[precision])
    assert done.returncode == 0, done.stderr
    first, second = load_bundle(before).manifest, load_bundle(tmp_path / "bundle").manifest
    assert second.engine.precision == first.engine.precision == precision
    assert second.self_test == first.self_test
    assert second.self_test.reference == "float32 graph"
    assert second.lowering == first.lowering
    assert second.lowering.psnr.keys() == {"depth", "semantics"}
    assert second.calibration == first.calibration
    assert (second.calibration is not None) == (precision == "int8")
    if ENGINE_OF[precision] == "onnxruntime":  # OpenVINO numbers its constants anew in every process
        assert second.files == first.files
    with Runtime.load(tmp_path / "bundle", threads=1) as runtime:
        runtime.self_test()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_device_without_onnx_runtime_compiles_it_too(precision, exported, pictures, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("modelopt.onnx.quantization")
    before, graph = tmp_path / "before", tmp_path / "lowered.onnx"
    lowering = Lowering(str(pictures), count=4 if precision == "int8" else None)
    build_bundle(exported, before, engine="tensorrt-rtx", precision=precision, lowering=lowering, graph=graph)
    done = build_without(
        "torch,modelopt,onnxruntime,openvino,onnxscript,safetensors,scipy,h5py",
        graph,
        "-o",
        tmp_path / "bundle",
        "--engine",
        "tensorrt-rtx",
    )
    assert done.returncode == 0, done.stderr
    manifest = load_bundle(tmp_path / "bundle").manifest
    assert (manifest.engine.kind, manifest.engine.precision) == ("tensorrt-rtx", precision)
    assert manifest.self_test.outputs == load_bundle(before).manifest.self_test.outputs


def test_a_graph_for_a_jetson_is_lowered_and_measured_without_tensorrt(exported, pictures, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization")
    command = [*command_without("tensorrt"), "build", exported, "--engine", "tensorrt", "--precision", "fp16"]
    command += ["--calibration", pictures, "--graph", tmp_path / "fp16.onnx", "--trtexec"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "trtexec --onnx=fp16.onnx" in done.stdout
    assert "PSNR against float32: depth" in done.stderr
    assert graph_precision(onnx.load(tmp_path / "fp16.onnx")) == "fp16"


def test_the_lowered_graph_is_checked_by_the_float32_self_test(lowered, tmp_path):
    """Weights changed after the export are detected, regardless of the metadata."""
    _, _, graph = lowered
    proto = onnx.load(graph)
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("w.depth"):
            tensor.CopyFrom(numpy_helper.from_array(-2 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(CheckFailed, match=r"self-test failed: depth.*changed\.onnx was changed after it was lowered"):
        build_bundle(tmp_path / "changed.onnx", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_another_precision_than_the_graphs_is_refused(lowered, exported, pictures, tmp_path):
    precision, _, graph = lowered
    for other in {"fp32", "fp16", "int8"} - {precision}:
        lowering = Lowering(str(pictures), count=4) if other == "int8" else None
        said = refused(build_bundle, graph, tmp_path / "bundle", precision=other, lowering=lowering)
        assert f"{graph} is {precision}, not {other}" in said
    assert not (tmp_path / "bundle").exists()


def test_the_graphs_own_precision_may_be_given(lowered, tmp_path):
    precision, _, graph = lowered
    assert build_bundle(graph, tmp_path / "bundle", precision=precision).manifest.engine.precision == precision


def test_lowering_options_are_refused_for_a_lowered_graph(lowered, pictures, tmp_path):
    precision, _, graph = lowered
    lowering = Lowering(str(pictures), count=4 if precision == "int8" else None)
    said = refused(build_bundle, graph, tmp_path / "bundle", precision=precision, lowering=lowering)
    assert f"is {precision} already" in said


def test_a_lowered_graph_is_refused_as_reference(lowered):
    precision, bundle, graph = lowered
    spec = load_bundle(bundle).manifest.input
    assert f"is {precision}: a reference must be float32" in refused(open_reference, graph, spec, 1)


@pytest.fixture
def foreign(lowered, tmp_path) -> Path:
    """Return the lowered graph as another tool would have written it."""
    proto = onnx.load(lowered[2])
    set_metadata(proto, "m2h.lowered", None)
    set_metadata(proto, "m2h.precision", None)
    onnx.save(proto, tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


def test_a_graph_that_another_tool_lowered_is_built_and_marked(foreign, lowered, tmp_path):
    manifest = build_bundle(foreign, tmp_path / "bundle").manifest
    assert manifest.engine.precision == lowered[0]
    assert manifest.self_test.reference == "lowered graph"
    assert manifest.lowering is None
    done = build_without("torch,modelopt", foreign, "-o", tmp_path / "again")
    assert "its self-test is made from the" in done.stderr


def test_without_a_self_test_onnx_runtime_is_needed_and_named(foreign, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    done = build_without("onnxruntime", foreign, "-o", tmp_path / "bundle", "--engine", "tensorrt-rtx")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "foreign.onnx has no self-test" in line
    assert install_extra("onnxruntime") in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[" * 5000, json.dumps({"self_test": None, "lowering": {}})])
def test_damaged_metadata_gives_a_one_line_error(lowered, text, tmp_path):
    proto = onnx.load(lowered[2])
    set_metadata(proto, "m2h.lowered", text)
    onnx.save(proto, tmp_path / "damaged.onnx")
    assert "metadata is damaged (m2h.lowered" in refused(build_bundle, tmp_path / "damaged.onnx", tmp_path / "bundle")


def test_outputs_other_than_the_self_tests_give_a_one_line_error(lowered, tmp_path):
    proto = onnx.load(lowered[2])
    del proto.graph.output[1]
    onnx.save(proto, tmp_path / "less.onnx")
    assert "other outputs than its self-test" in refused(build_bundle, tmp_path / "less.onnx", tmp_path / "bundle")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_half_inputs_and_outputs_are_read_from_the_graph_and_run(exported, engine, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization")
    pytest.importorskip(engine)
    graph = tmp_path / "half.onnx"
    lowering = Lowering(io="fp16")
    build_bundle(exported, tmp_path / "a", engine="openvino", precision="fp16", lowering=lowering, graph=graph)
    manifest = build_bundle(graph, tmp_path / "b", engine=engine).manifest
    assert (manifest.input.dtype, *(output.dtype for output in manifest.outputs)) == ("float16",) * 3
    with Runtime.load(tmp_path / "b", threads=1) as runtime:
        assert runtime(np.zeros((20, 20, 3), np.uint8)).depth.dtype == np.float32
