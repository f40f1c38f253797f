"""Test that the package for Mono-Hydra's ONNX node gives the network's outputs by that node's own steps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml

from m2h_deploy import M2HError, Runtime
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.packaging.mono_hydra import node_input, package_mono_hydra
from m2h_deploy.runtime.preprocess import PRESETS
from tests.commands import done


@pytest.fixture(scope="module")
def packaged(tiny_bundle, tmp_path_factory):
    return package_mono_hydra(tiny_bundle, tmp_path_factory.mktemp("mono_hydra") / "out")


@pytest.fixture(scope="module")
def parameters(packaged):
    return yaml.safe_load((packaged / "m2h_onnx.yaml").read_text())["/**"]["ros__parameters"]


def test_the_graph_has_four_float32_outputs_in_order_and_batch_one(packaged):
    session = ort.InferenceSession(packaged / "m2h.onnx", providers=["CPUExecutionProvider"])
    assert [(value.name, value.type, value.shape[0]) for value in session.get_outputs()] == [
        (name, "tensor(float)", 1) for name in ("depth", "semantics", "normals", "edges")
    ]
    onnx.checker.check_model(onnx.load(packaged / "m2h.onnx"), full_check=True)


def test_the_node_finds_depth_first_and_class_scores_next(packaged, parameters):
    session = ort.InferenceSession(packaged / "m2h.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in session.get_outputs()}
    depth = next(name for name, shape in shapes.items() if shape[:2] == [1, 1])
    scores = next(name for name in shapes if name != depth)
    assert (depth, scores) == (parameters["depth_output_name"], parameters["semantic_output_name"])
    assert shapes[scores][1] == parameters["num_classes"]
    image = session.get_inputs()[0]
    assert image.shape == [1, 3, parameters["input_height"], parameters["input_width"]]


def test_the_node_s_steps_give_the_runtime_s_depth_and_labels(packaged, parameters, tiny_bundle):
    image = render_room(3, 1, 112, 140).image
    session = ort.InferenceSession(parameters["model_path"], providers=["CPUExecutionProvider"])
    tensor = node_input(image, parameters["input_height"], parameters["input_width"])
    depth, scores, _, _ = session.run(None, {"image": tensor})
    depth = np.clip(depth[0, 0] * parameters["depth_scale"], parameters["depth_min"], parameters["depth_max"])
    with Runtime.load(tiny_bundle, threads=1) as runtime:
        prediction = runtime(image)
    # Random weights amplify the rounding of the normalization.
    np.testing.assert_allclose(depth, prediction.depth, rtol=1e-3, atol=1e-3)
    assert np.mean(scores[0].argmax(0) == prediction.semantics) > 0.999


def test_the_normalization_parameters_are_the_node_s_defaults(parameters):
    assert parameters["normalize_mean"] == [0.485, 0.456, 0.406]
    assert parameters["normalize_std"] == [0.229, 0.224, 0.225]


def test_the_file_records_its_new_normalization(packaged):
    path = packaged / "m2h.onnx"
    assert GraphInfo.read(onnx.load(path), path).normalization == PRESETS["imagenet"]


def test_a_graph_that_the_node_cannot_take_is_refused(tiny_onnx, tmp_path):
    proto = onnx.load(tiny_onnx)
    del proto.graph.output[3]
    onnx.save(proto, tmp_path / "three.onnx")
    with pytest.raises(M2HError, match="in this order"):
        package_mono_hydra(tmp_path / "three.onnx", tmp_path / "out")
    proto = onnx.load(tiny_onnx)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(proto, tmp_path / "free.onnx")
    with pytest.raises(M2HError, match="single images"):
        package_mono_hydra(tmp_path / "free.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_not_changed(tiny_onnx, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(M2HError, match="exists"):
        package_mono_hydra(tiny_onnx, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_writes_both_files(tiny_onnx, tmp_path):
    shutil.copy(tiny_onnx, tmp_path / "model.onnx")
    done("package", tmp_path / "model.onnx", "--mono-hydra", "-o", tmp_path / "hydra")
    assert sorted(path.name for path in (tmp_path / "hydra").iterdir()) == ["m2h.onnx", "m2h_onnx.yaml"]


@pytest.mark.parametrize("offset", [0.0, 0.3, -0.4])
def test_a_depth_calibration_gives_the_node_the_runtime_s_depth(tiny_bundle, tmp_path, offset):
    """The node computes clip(depth * depth_scale, depth_min, depth_max)."""
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["depth_calibration"] = {"scale": 0.9, "offset": offset}
    low, high = manifest["depth_range"] = [0.5, 2.2]  # so that both limits are reached
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    packaged = package_mono_hydra(tmp_path / "bundle", tmp_path / "out")
    found = yaml.safe_load((packaged / "m2h_onnx.yaml").read_text())["/**"]["ros__parameters"]
    image = render_room(3, 1, 112, 140).image
    session = ort.InferenceSession(packaged / "m2h.onnx", providers=["CPUExecutionProvider"])
    depth = session.run(["depth"], {"image": node_input(image, 112, 140)})[0][0, 0]
    assert found["depth_min"] == pytest.approx(max(0, 0.9 * low + offset))
    assert found["depth_max"] == pytest.approx(0.9 * high + offset)
    depth = np.clip(depth * found["depth_scale"], found["depth_min"], found["depth_max"])
    with Runtime.load(tmp_path / "bundle", threads=1) as runtime:
        expected = runtime(image).depth
    assert expected.min() < expected.max()
    np.testing.assert_allclose(depth, expected, rtol=1e-3, atol=1e-3)
