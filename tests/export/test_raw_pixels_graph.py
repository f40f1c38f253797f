"""Test that a sensor graph equals preprocess, network and postprocess for any camera and engine."""

from __future__ import annotations

import json

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from export import Sensor, add_sensor, check_sensor, export_onnx
from export.raw_pixels import resize_table
from m2h_deploy.camera import parse_camera_size
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.runtime.postprocess import Postprocess
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess, bgr_to_nv12, nv12_to_bgr
from tests.commands import done


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Export the trained network: with random weights, float32 rounding changes depth by millimeters."""
    from m2h_deploy.model import load_checkpoint

    path = tmp_path_factory.mktemp("plain") / "tiny.onnx"
    return onnx.load(export_onnx(load_checkpoint("m2h-tiny"), path, height=112, width=140, form="deploy").path)


def session(proto) -> ort.InferenceSession:
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def run(proto, image) -> dict[str, np.ndarray]:
    opened = session(proto)
    names = [node.name for node in opened.get_outputs()]
    return dict(zip(names, opened.run(names, {"image": image}), strict=True))


def python_path(plain, image):
    outputs = run(plain, Preprocess(PRESETS["published"], 112, 140)(image))
    return Postprocess((1e-3, 10.0))({name: value[0] for name, value in outputs.items()}, *image.shape[:2])


def assert_same(given, expected):
    assert np.mean(given["labels"][0] == expected.semantics) >= 0.999
    assert np.abs(given["depth"][0] - expected.depth).max() <= 1e-3
    assert np.abs(given["normals"][0] - expected.normals).max() <= 1e-3
    assert np.abs(given["edges"][0] - expected.edges).max() <= 1e-3


@pytest.mark.parametrize(
    ("camera", "network"),
    [
        ((640, 480), (224, 224)),
        ((160, 120), (224, 224)),
        ((643, 481), (140, 112)),
        ((320, 240), (160, 120)),
        ((224, 1000), (224, 224)),
        ((17, 19), (301, 16)),
    ],
)
def test_the_tables_equal_opencvs_fixed_point_resize_bit_by_bit(camera, network):
    image = np.random.default_rng(0).integers(0, 256, (camera[1], camera[0]), np.uint8)
    top, bottom, upper, lower = resize_table(camera[1], network[1], vertical=True)
    left, right, near, far = resize_table(camera[0], network[0], vertical=False)
    pixels = image.astype(np.int64)
    rows = (pixels[:, left] * near.astype(np.int64) + pixels[:, right] * far.astype(np.int64)) >> 4
    upper, lower = (weights.astype(np.int64)[:, None] for weights in (upper, lower))
    resized = (((rows[top] * upper) >> 16) + ((rows[bottom] * lower) >> 16) + 2) >> 2
    np.testing.assert_array_equal(resized.clip(0, 255), cv2.resize(image, network, interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("camera", [(640, 480), (140, 112), (96, 64), (281, 223), (140, 480)])
def test_the_network_gets_the_same_pixels(plain, camera):
    """Noise is the hardest image to resize; normalized values differ only by float32 rounding."""
    image = np.random.default_rng(1).integers(0, 256, (camera[1], camera[0], 3), np.uint8)
    graph = add_sensor(plain, Sensor(camera, outputs=("depth",)))
    graph.graph.output.append(onnx.ValueInfoProto(name="network/image"))
    seen = run(graph, image[None])["network/image"]
    np.testing.assert_allclose(seen, Preprocess(PRESETS["published"], 112, 140)(image), atol=2e-6)


@pytest.mark.parametrize("camera", [(160, 120), (140, 112), (100, 75)])
def test_results_equal_those_of_preprocess_network_and_postprocess(plain, camera):
    image = render_room(3, 1, height=camera[1], width=camera[0]).image
    assert_same(run(add_sensor(plain, Sensor(camera)), image[None]), python_path(plain, image))


@pytest.mark.slow
def test_the_reference_form_with_functions_and_a_dynamic_batch_is_supported(tiny_model, tmp_path, shared):
    path = tmp_path / "sensor.onnx"
    frames = [cv2.imread(str(file)) for file in sorted((shared / "nyuv2_frames").glob("rgb_*.jpg"))]
    report = export_onnx(
        tiny_model, path, height=56, width=56, form="reference", windows="functions", dynamic_batch=True,
        sensor=Sensor((64, 48)), images=frames,
    ).report  # fmt: skip
    assert report.passed
    assert {row.output for row in report.differences} == {"depth", "semantics", "labels", "normals", "edges"}
    graph = onnx.load(path)
    assert graph.functions
    rooms = np.stack([render_room(3, index, height=48, width=64).image for index in range(2)])
    together = run(graph, rooms)
    for index in range(2):
        for name, value in run(graph, rooms[index : index + 1]).items():
            np.testing.assert_allclose(together[name][index], value[0], atol=2e-3, err_msg=name)


def test_the_real_frames_agree_at_their_own_size(plain, shared):
    graph = add_sensor(plain, Sensor((640, 480)))
    for file in sorted((shared / "nyuv2_frames").glob("rgb_*.jpg")):
        image = cv2.imread(str(file))
        assert_same(run(graph, image[None]), python_path(plain, image))


def test_nv12_is_converted_as_by_opencv(plain):
    image = render_room(3, 1, height=120, width=160).image
    raw = bgr_to_nv12(image)
    given = run(add_sensor(plain, Sensor((160, 120), "nv12")), raw[None])
    assert_same(given, python_path(plain, nv12_to_bgr(raw)))


def test_every_nv12_color_equals_opencvs(plain):
    values = np.random.default_rng(0).integers(0, 256, (168, 140), np.uint8)
    graph = add_sensor(plain, Sensor((140, 112), "nv12", ("depth",)))
    graph.graph.output.append(onnx.ValueInfoProto(name="network/image"))
    seen = run(graph, values[None])["network/image"]
    np.testing.assert_allclose(seen, Preprocess(PRESETS["published"], 112, 140)(nv12_to_bgr(values)), atol=2e-6)


def test_millimeters_are_rounded_meters(plain):
    image = render_room(3, 1, height=120, width=160).image
    meters = run(add_sensor(plain, Sensor((160, 120), outputs=("depth",))), image[None])["depth"]
    depth = run(add_sensor(plain, Sensor((160, 120), outputs=("depth",), depth="uint16")), image[None])["depth"]
    assert depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, np.rint(meters * np.float32(1000)))


def test_types_and_shapes_are_the_documented_ones(plain):
    opened = session(add_sensor(plain, Sensor((160, 120))))
    assert [(i.name, i.shape, i.type) for i in opened.get_inputs()] == [("image", [1, 120, 160, 3], "tensor(uint8)")]
    assert [(o.name, o.shape, o.type) for o in opened.get_outputs()] == [
        ("depth", [1, 120, 160], "tensor(float)"),
        ("labels", [1, 120, 160], "tensor(uint8)"),
        ("normals", [1, 120, 160, 3], "tensor(float)"),
        ("edges", [1, 120, 160], "tensor(float)"),
    ]
    facts = json.loads(opened.get_modelmeta().custom_metadata_map["m2h.sensor"])
    assert facts == {"format": "uint8", "camera": [160, 120], "network": [140, 112], "depth": "float32"}


def test_a_graph_that_computes_something_else_fails_the_check(plain, tmp_path):
    broken = add_sensor(plain, Sensor((160, 120)))
    table = next(t for t in broken.graph.initializer if t.name == "/preprocess/normalize/Sub_input_1")
    table.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(table) + np.float32(0.2), table.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    report = check_sensor(plain.SerializeToString(), tmp_path / "broken.onnx")
    assert not report.passed
    assert any(failure.startswith("depth on sensor, a room is off by") for failure in report.failures)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sensor((8, 480)),
        lambda: Sensor((641, 480), "nv12"),
        lambda: Sensor((640, 480), "rgb"),
        lambda: Sensor((640, 480), outputs=("semantics",)),
        lambda: Sensor((640, 480), outputs=()),
        lambda: Sensor((640, 480), depth="float16"),
        lambda: parse_camera_size("640"),
        lambda: parse_camera_size("640x-480"),
    ],
)
def test_an_invalid_sensor_gives_a_one_line_error(make):
    with pytest.raises(M2HError) as error:
        make()
    assert "\n" not in str(error.value)


def test_openvino_gives_the_same(plain):
    ov = pytest.importorskip("openvino")
    image = render_room(3, 1, height=120, width=160).image
    for sensor, raw in ((Sensor((160, 120)), image), (Sensor((160, 120), "nv12"), bgr_to_nv12(image))):
        graph = add_sensor(plain, sensor)
        core = ov.Core()
        model = core.read_model(graph.SerializeToString())
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        given = compiled(raw[None])
        seen = image if raw is image else nv12_to_bgr(raw)
        assert_same({name: given[name] for name in ("depth", "labels", "normals", "edges")}, python_path(plain, seen))


@pytest.mark.parametrize("format", ["uint8", "nv12"])
def test_tensorrt_rtx_compiles_it(plain, tmp_path, format):
    pytest.importorskip("tensorrt_rtx")
    from engines.tensorrt import build_plan

    onnx.save(add_sensor(plain, Sensor((160, 120), format)), tmp_path / "sensor.onnx")
    record = build_plan(tmp_path / "sensor.onnx", tmp_path / "model.plan", flavor="tensorrt-rtx")
    assert record.plan_bytes > 1_000_000


@pytest.mark.slow
def test_the_command_leaves_unrequested_outputs_out_of_a_sensor_graph(tiny_checkpoint, tmp_path):
    output = tmp_path / "sensor.onnx"
    sensor = ("--sensor", "nv12", "--camera-size", "32x32", "--outputs", "labels")
    done("export", tiny_checkpoint, "-o", output, "--height", 28, "--width", 28, *sensor)
    graph = onnx.load(output)
    assert [value.name for value in graph.graph.output] == ["labels"]
    assert not any(node.name.startswith("/heads.depth/") for node in graph.graph.node)
