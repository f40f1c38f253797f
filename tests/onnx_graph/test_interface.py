"""Test that a graph changed by another tool is built, or refused in one line that names the file and the mismatch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines import build_bundle
from export.raw_pixels import Sensor, add_sensor
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.packaging.mono_hydra import package_mono_hydra
from m2h_deploy.parity.locate import locate
from m2h_deploy.parity.reference import open_reference


def shape_of(value: onnx.ValueInfoProto):
    return value.type.tensor_type.shape.dim


def free_height(proto):
    shape_of(proto.graph.input[0])[2].dim_param = "h"


def no_height(proto):
    shape_of(proto.graph.input[0])[2].dim_value = 0


def huge(proto):
    shape_of(proto.graph.input[0])[3].dim_value = 20000


def free_batch(proto):
    shape_of(proto.graph.input[0])[0].dim_param = "batch"


def another_size(proto):
    shape_of(proto.graph.input[0])[2].dim_value = 126


def one_channel(proto):
    shape_of(proto.graph.input[0])[1].dim_value = 1


def doubles(proto):
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def no_type(proto):
    proto.graph.input[0].ClearField("type")


def one_more_input(proto):
    proto.graph.input.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, [1]))


def no_input(proto):
    del proto.graph.input[:]


def one_more_output(proto):
    proto.graph.output.append(helper.make_tensor_value_info(proto.graph.node[5].output[0], TensorProto.FLOAT, None))


def an_output_twice(proto):
    proto.graph.output.append(proto.graph.output[0])


def no_output(proto):
    del proto.graph.output[:]


def renamed_output(proto):
    for node in proto.graph.node:
        node.output[:] = ["d" if name == "depth" else name for name in node.output]
    proto.graph.output[0].name = "d"


def output_that_nothing_computes(proto):
    for node in proto.graph.node:
        node.output[:] = ["d" if name == "depth" else name for name in node.output]


def output_without_a_shape(proto):
    proto.graph.output[0].type.tensor_type.ClearField("shape")


def other_classes(proto):
    entry = next(entry for entry in proto.metadata_props if entry.key == "m2h.config")
    entry.value = json.dumps(json.loads(entry.value) | {"num_classes": 20})


def no_metadata(proto):
    del proto.metadata_props[:]


def no_opset(proto):
    del proto.opset_import[:]


def unknown_opset(proto):
    proto.opset_import[0].version = 99


def old_opset(proto):
    proto.opset_import[0].version = 9


def missing_weight(proto):
    del proto.graph.initializer[3]


def short_weight(proto):
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def weight_that_is_no_number(proto):
    tensor = next(t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


REFUSED = {
    free_height: "its input image is N x 3 x free x 140, expected N x 3 x height x width",
    no_height: "its input image is N x 3 x free x 140",
    huge: "at most 16384",
    free_batch: "depth: shape (1, 1, 112, 140), expected (N, 1, 112, 140)",
    another_size: "ONNX Runtime cannot run",
    one_channel: "its input image is N x 1 x 112 x 140",
    doubles: "its input image is double, expected floating-point of 16 or 32 bits",
    no_type: "its input image is undefined",
    one_more_input: "it takes 2 inputs (image, extra), expected one image",
    no_input: "it takes 0 inputs",
    one_more_output: "it gives /",
    an_output_twice: "each at most once",
    no_output: "it gives nothing",
    renamed_output: "it gives d, expected depth, semantics, normals, edges",
    output_that_nothing_computes: "no node computes depth",
    output_without_a_shape: "depth: shape ()",
    other_classes: "m2h.classes names 41 classes, m2h.config has 20",
    no_metadata: "was not made by this version of m2h-deploy export",
    no_opset: "it has no opset",
    unknown_opset: "ONNX Runtime cannot load",
    old_opset: "ONNX Runtime cannot load",
    missing_weight: "ONNX Runtime cannot load",
    short_weight: "ONNX Runtime cannot load",
    weight_that_is_no_number: "gives NaN or infinity in",
}


def edited(source: Path, edit, path: Path) -> Path:
    proto = onnx.load(source)
    edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("edit", REFUSED, ids=lambda edit: edit.__name__)
def test_a_graph_that_does_not_fit_is_refused(edit, tiny_onnx, tmp_path):
    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    with pytest.raises(M2HError) as error:
        build_bundle(path, tmp_path / "bundle")
    message = str(error.value)
    assert str(path) in message and REFUSED[edit] in message and "\n" not in message
    assert [file.name for file in tmp_path.iterdir()] == ["edited.onnx"]


@pytest.mark.parametrize(
    "edit", [one_more_input, free_height, renamed_output, missing_weight, weight_that_is_no_number]
)
def test_a_graph_that_does_not_fit_is_not_packaged(edit, tiny_onnx, tmp_path):
    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    with pytest.raises(M2HError) as error:
        package_mono_hydra(path, tmp_path / "mono")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("edit", [one_more_input, no_type, one_channel, free_height, missing_weight])
def test_a_graph_that_does_not_fit_is_refused_as_reference(edit, tiny_onnx, tiny_bundle, tmp_path):
    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    spec = load_bundle(tiny_bundle).manifest.network_input
    with pytest.raises(M2HError) as error:
        open_reference(path, spec).run(np.zeros((1, 3, 112, 140), np.float32))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("edit", [one_more_input, another_size, missing_weight])
def test_locate_refuses_a_graph_that_does_not_fit(edit, tiny_onnx, tmp_path):
    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    with pytest.raises(M2HError) as error:
        locate(tiny_onnx, path, np.zeros((1, 3, 112, 140), np.float32))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def no_edges(proto):
    del proto.graph.output[3]


def renamed_input(proto):
    for node in proto.graph.node:
        node.input[:] = ["x" if name == "image" else name for name in node.input]
    proto.graph.input[0].name = "x"


def other_order(proto):
    outputs = [proto.graph.output[index] for index in (3, 0, 2, 1)]
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)


@pytest.mark.parametrize("edit", [no_edges, renamed_input, other_order])
def test_a_graph_that_fits_is_built(edit, tiny_onnx, tmp_path):
    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    manifest = build_bundle(path, tmp_path / "bundle").manifest
    proto = onnx.load(path)
    assert manifest.input.name == proto.graph.input[0].name
    assert [output.name for output in manifest.outputs] == [value.name for value in proto.graph.output]


@pytest.mark.parametrize("camera_format", ["uint8", "nv12"])
def test_a_sensor_graph_must_match_its_camera(camera_format, tiny_onnx, tmp_path):
    def edit(proto):
        proto.CopyFrom(add_sensor(proto, Sensor((64, 48), camera_format)))
        shape_of(proto.graph.input[0])[1].dim_value += 2

    path = edited(tiny_onnx, edit, tmp_path / "edited.onnx")
    with pytest.raises(M2HError, match=r"edited\.onnx was changed since its export: its input image is N x (50|74) x"):
        build_bundle(path, tmp_path / "bundle")
