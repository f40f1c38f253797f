"""Test a sensor bundle from end to end: build, self-test, run, verify, conversion, and refused inputs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from engines import build_bundle
from engines.inspect.inspect import inspect, render
from engines.precision.raw_pixels import put_network, take_network
from export import Sensor, add_sensor
from m2h_deploy import CheckFailed, M2HError, Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.runtime.preprocess import bgr_to_nv12

CAMERA = (160, 120)


@pytest.fixture(scope="module")
def graph(tiny_onnx, tmp_path_factory):
    path = tmp_path_factory.mktemp("sensor") / "sensor.onnx"
    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor(CAMERA)), path)
    return path


@pytest.fixture(scope="module")
def bundle(graph, tmp_path_factory):
    return build_bundle(graph, tmp_path_factory.mktemp("bundle") / "sensor").path


@pytest.fixture(scope="module")
def plain(tiny_bundle):
    with Runtime.load(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def room():
    return render_room(3, 0, height=CAMERA[1], width=CAMERA[0]).image


def assert_same(given, expected):
    """The network has random weights, so float32 rounding changes depth by millimeters."""
    assert np.mean(given.semantics == expected.semantics) > 0.999
    np.testing.assert_allclose(given.depth, expected.depth, atol=5e-3)
    np.testing.assert_allclose(given.normals, expected.normals, atol=2e-2)
    np.testing.assert_allclose(given.edges, expected.edges, atol=5e-3)


def test_the_manifest_describes_input_and_outputs(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["sensor"] == {"format": "uint8", "network_height": 112, "network_width": 140}
    spec = manifest["input"]
    assert (spec["dtype"], spec["layout"], spec["color"], spec["height"], spec["width"]) == (
        "uint8", "NHWC", "BGR", 120, 160,
    )  # fmt: skip
    assert [(o["name"], o["dtype"], o["unit"], o["shape"]) for o in manifest["outputs"]] == [
        ("depth", "float32", "m", [1, 120, 160]),
        ("labels", "uint8", "1", [1, 120, 160]),
        ("normals", "float32", "unit vector", [1, 120, 160, 3]),
        ("edges", "float32", "1", [1, 120, 160]),
    ]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_runtime_gives_the_plain_bundles_predictions(graph, plain, room, tmp_path, engine):
    pytest.importorskip(engine)
    with Runtime.load(build_bundle(graph, tmp_path / "bundle", engine=engine).path) as runtime:
        assert runtime.tasks == ("depth", "semantics", "normals", "edges")
        prediction, expected = runtime(room), plain(room)
        assert prediction.semantics.dtype == np.uint8
        assert_same(prediction, expected)
        kept = prediction.depth.copy()
        runtime(255 - room)
        np.testing.assert_array_equal(prediction.depth, kept)
        out = runtime.new_prediction()
        assert runtime(room, out=out).depth is out.depth
        np.testing.assert_array_equal(out.depth, kept)


def test_other_color_orders_gray_and_alpha_are_converted_as_by_a_plain_bundle(bundle, plain, room):
    with Runtime.load(bundle, color="RGB") as runtime:
        assert_same(runtime(room[:, :, ::-1]), plain(room))
        assert_same(runtime(room[:, :, 1]), plain(room[:, :, 1]))
        assert_same(runtime(np.dstack([room[:, :, ::-1], room[:, :, :1]])), plain(room))


def test_nv12_is_taken_raw_or_converted_from_colors(tiny_onnx, room, tmp_path):
    path = tmp_path / "sensor.onnx"
    sensor = Sensor(CAMERA, "nv12", ("depth", "labels"), "uint16")
    onnx.save(add_sensor(onnx.load(tiny_onnx), sensor), path)
    with Runtime.load(build_bundle(path, tmp_path / "bundle").path) as runtime:
        of_color, of_raw = runtime(room), runtime(bgr_to_nv12(room))
        assert of_raw.depth.shape == (120, 160)
        assert of_raw.depth.dtype == np.float32
        np.testing.assert_array_equal(of_raw.depth, of_color.depth)
        np.testing.assert_allclose(1000 * of_raw.depth, np.rint(1000 * of_raw.depth), atol=1e-3)
        assert of_raw.normals is None


def test_the_error_for_another_size_names_the_option(bundle):
    with Runtime.load(bundle) as runtime, pytest.raises(M2HError, match="--camera-size 320x240"):
        runtime(np.zeros((240, 320, 3), np.uint8))
    with Runtime.load(bundle) as runtime, pytest.raises(M2HError, match="camera's size"):
        runtime(np.zeros((120, 160, 3), np.uint8), resolution="network")


@pytest.mark.parametrize("output", ["labels", "depth"])
def test_the_self_test_finds_wrong_numbers(bundle, tmp_path, output):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text())
    values = manifest["self_test"]["outputs"][output]["values"]
    manifest["self_test"]["outputs"][output]["values"] = [value + 1 for value in values]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed, match="self-test failed"):
        Runtime.load(copy)


def test_verify_compares_finished_results(bundle, tiny_checkpoint, tmp_path):
    from m2h_deploy.parity import verify

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    result = verify(copy, tiny_checkpoint, Rooms(8, height=CAMERA[1], width=CAMERA[0]), record=True)
    assert result.passed, result.summary
    assert [tensor.output for tensor in result.tensors] == ["depth", "normals", "edges"]
    assert [task.task for task in result.tasks] == ["depth", "semantics", "normals", "edges"]
    assert load_bundle(copy).manifest.parity["passed"]


def test_verify_refuses_a_sensor_graph_as_reference(bundle, graph):
    from m2h_deploy.parity import verify

    with pytest.raises(M2HError, match="is a sensor graph"):
        verify(bundle, graph, Rooms(1, height=CAMERA[1], width=CAMERA[0]))


def test_inspect_shows_that_a_bundle_takes_raw_pixels(bundle, graph):
    report = inspect(bundle)
    assert {"preprocess", "postprocess", "backbone"} <= {row["block"] for row in inspect(graph)["blocks"]}
    text = "".join(str(column._cells) for table in render(report)[:1] for column in table.columns)
    assert "1 x 120 x 160 x 3 uint8 (BGR)" in text


def test_the_network_is_extracted_unchanged_and_put_back(tiny_onnx, graph):
    plain, sensor = onnx.load(tiny_onnx), onnx.load(graph)
    network = take_network(sensor)
    assert list(network.graph.node) == list(plain.graph.node)
    assert [value.name for value in network.graph.output] == [value.name for value in plain.graph.output]
    onnx.checker.check_model(network)
    again = put_network(sensor, network)
    onnx.checker.check_model(again)
    assert [node.name for node in again.graph.node] == [node.name for node in sensor.graph.node]


@pytest.mark.slow
def test_fp16_does_not_change_the_types_of_pixels_meters_and_labels(tiny_onnx, graph, room, tmp_path):
    pytest.importorskip("modelopt")
    from engines.precision.convert import to_fp16

    converted, reference = tmp_path / "fp16.onnx", tmp_path / "plain.onnx"
    report = to_fp16(graph, converted)
    to_fp16(tiny_onnx, reference)
    half = onnx.load(converted)
    assert not any(island.node.startswith(("/preprocess/", "/postprocess/")) for island in report.islands)
    outside = {t.name: t for t in half.graph.initializer if t.name.startswith(("/preprocess/", "/postprocess/"))}
    assert outside
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in outside.values()}
    assert onnx.TensorProto.FLOAT16 in {tensor.data_type for tensor in half.graph.initializer}
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.output}
    assert types["depth"] == onnx.TensorProto.FLOAT
    assert types["labels"] == onnx.TensorProto.UINT8
    with (
        Runtime.load(build_bundle(converted, tmp_path / "a").path) as sensor,
        Runtime.load(build_bundle(reference, tmp_path / "b").path) as plain,
    ):
        given, expected = sensor(room), plain(room)
    assert np.mean(given.semantics == expected.semantics) > 0.999
    assert np.abs(given.depth - expected.depth).mean() < 1e-2  # large, as the weights are random


def test_a_sensor_graph_keeps_the_types_of_inputs_and_outputs(graph, tmp_path):
    pytest.importorskip("modelopt")
    from engines.precision.convert import to_fp16

    with pytest.raises(M2HError, match="leave io at fp32"):
        to_fp16(graph, tmp_path / "half.onnx", io="fp16")


def test_millimeters_are_refused_where_the_engine_lacks_them(tiny_onnx, tmp_path):
    path = tmp_path / "sensor.onnx"
    onnx.save(add_sensor(onnx.load(tiny_onnx), Sensor(CAMERA, depth="uint16")), path)
    with pytest.raises(M2HError, match="--depth-format float32"):
        build_bundle(path, tmp_path / "bundle", engine="tensorrt-rtx")
