"""Test that a graph with a label map gives, on every pixel, the labels of its reduced logits, on real engines."""

from __future__ import annotations

import dataclasses
import json

import cv2
import numpy as np
import onnx
import openvino as ov
import pytest

from export import ExportOptions, Sensor, add_sensor
from export.check import check_against, references_of
from export.graph import infer_shapes
from export.label_map import reduce_semantics
from m2h_deploy.blocks import block_of
from m2h_deploy.bundle.manifest import Classes, LabelMap
from m2h_deploy.data.classes import default_classes
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.label_spaces.read import load_label_space
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.runtime.preprocess import PRESETS, Preprocess
from tests.commands import refused
from tests.engines.graphs import with_label_map

SIZE = (112, 140)
CAMERA = (160, 120)
SPACES = ("nyud20", "hydra", "three", "one", "reversed")


def space(name: str) -> tuple[Classes, LabelMap]:
    """Return a label space for 41 classes: of those that ship, or one with a special form."""
    network = default_classes(41)
    if name in ("nyud20", "hydra"):
        return load_label_space(name).resolve(network)
    groups = {
        "three": ((), (5, 1, 7), ()),  # two empty groups, and most classes are in none
        "one": (tuple(range(41)),),
        "reversed": tuple((index,) for index in reversed(range(41))),
    }[name]
    classes = Classes(names=tuple(f"c{i}" for i in range(len(groups))), palette=((0, 0, 0),) * len(groups))
    return classes, LabelMap(name=name, network_classes=network.names, groups=groups)


def mapped(proto: onnx.ModelProto, name: str, resolution: str = "network") -> onnx.ModelProto:
    """Return `proto` with a label map of `space`."""
    return with_label_map(proto, *space(name), resolution)


def with_logits(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return `proto` with the value `name` as a further output."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    result.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return result


def run_openvino(proto: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = ov.Core()
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", settings)
    found = compiled([image])
    return {name: found[output] for output in compiled.outputs for name in output.get_names()}


def run_onnxruntime(proto: onnx.ModelProto, image: np.ndarray) -> dict[str, np.ndarray]:
    session = cpu_session(proto.SerializeToString(), "the graph")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))


RUNS = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


@pytest.fixture(scope="module")
def plain(tiny_onnx) -> onnx.ModelProto:
    return onnx.load(tiny_onnx)


@pytest.fixture(scope="module")
def tensor() -> np.ndarray:
    return Preprocess(PRESETS["published"], *SIZE)(render_room(3, 0, 120, 160).image)


@pytest.fixture(scope="module")
def classifier() -> onnx.ModelProto:
    """A graph that is only a last layer: 41 classes of 8 pixels."""
    weights = np.random.default_rng(0).standard_normal((41, 3, 1, 1)).astype(np.float32)
    image, scores = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, *SIZE])
        for name, channels in (("image", 3), ("semantics", 41))
    )
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "weights"], ["semantics"], "/heads.semantics/final/Conv")],
        "classifier",
        [image],
        [scores],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("engine", RUNS)
@pytest.mark.parametrize("name", SPACES)
def test_a_last_layer_s_labels_are_those_of_its_logits_reduced_outside(classifier, tensor, name, engine):
    graph = onnx.ModelProto()
    graph.CopyFrom(classifier)
    reduce_semantics(graph, space(name)[1])
    assert_reduced(RUNS[engine](with_logits(infer_shapes(graph), "/heads.semantics/label_map/logits"), tensor), name)


@pytest.mark.parametrize("engine", RUNS)
def test_the_graph_s_labels_are_those_of_its_logits_reduced_outside(plain, tensor, engine):
    graph = with_logits(mapped(plain, "nyud20"), "/heads.semantics/label_map/logits")
    assert_reduced(RUNS[engine](graph, tensor), "nyud20")


def assert_reduced(outputs: dict[str, np.ndarray], name: str) -> None:
    """Both values come from one run, so that every pixel must agree."""
    _, label_map = space(name)
    logits = outputs["/heads.semantics/label_map/logits"]
    assert logits.shape == (1, 41, *SIZE)
    expected = reduce_logits(logits, label_map)
    np.testing.assert_array_equal(outputs["semantics"].argmax(1), expected.argmax(1))
    np.testing.assert_array_equal(outputs["semantics"], expected)
    if None not in label_map.table:
        # Without ties, which real logits do not have, mapping the argmax is the same.
        np.testing.assert_array_equal(np.array(label_map.table)[logits.argmax(1)], outputs["semantics"].argmax(1))
    assert {index for index, group in enumerate(label_map.groups) if not group}.isdisjoint(
        np.unique(outputs["semantics"].argmax(1))
    )


@pytest.mark.parametrize("engine", RUNS)
def test_a_sensor_graph_s_labels_are_those_of_its_logits_reduced_outside(plain, engine):
    graph = add_sensor(mapped(plain, "hydra"), Sensor(CAMERA, outputs=("labels",)))
    graph = with_logits(graph, "/heads.semantics/label_map/logits")
    image = np.ascontiguousarray(cv2.resize(render_room(3, 1, 240, 320).image, CAMERA))
    outputs = RUNS[engine](graph, image[None])
    labels = (
        reduce_logits(outputs["/heads.semantics/label_map/logits"], space("hydra")[1])[0].argmax(0).astype(np.uint8)
    )
    np.testing.assert_array_equal(outputs["labels"][0], cv2.resize(labels, CAMERA, interpolation=cv2.INTER_NEAREST))


@pytest.mark.parametrize("engine", RUNS)
def test_ties_go_to_the_first_group(classifier, tensor, engine):
    """With weights of 0 every class ties."""
    graph = onnx.ModelProto()
    graph.CopyFrom(classifier)
    weights = graph.graph.initializer[0]
    weights.CopyFrom(onnx.numpy_helper.from_array(np.zeros((41, 3, 1, 1), np.float32), weights.name))
    reduce_semantics(graph, space("three")[1])
    logits = RUNS[engine](infer_shapes(graph), tensor)["semantics"]
    assert (logits.argmax(1) == 1).all()  # the only group that has classes
    assert (logits[:, 1] == 0).all() and (logits[:, [0, 2]] == -1).all()


def test_the_reduction_belongs_to_the_head_s_block_and_uses_standard_operators(plain):
    graph = mapped(plain, "hydra")
    new = graph.graph.node[len(plain.graph.node) :]
    assert {block_of(node.name) for node in new} == {"heads.semantics"}
    assert {node.op_type for node in new} <= {"Gather", "Split", "Max", "Concat", "ReduceMin", "Sub"}
    names = [node.name for node in graph.graph.node]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(graph, full_check=True)


def test_the_metadata_carries_names_colors_and_groups(plain):
    info = GraphInfo.read(mapped(plain, "nyud20", "full"), "the graph")
    assert (info.classes, info.label_map) == space("nyud20") and info.label_resolution == "full"
    assert info.config["num_classes"] == 41 and len(info.classes.names) == 21


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("m2h.label_map", {"groups": [[1]]}, "1 groups"),
        ("m2h.label_map", {"network_classes": ["a"]}, "names 1 classes"),
        ("m2h.label_map", {"more": 1}, "m2h.label_map"),
    ],
)
def test_a_damaged_label_map_in_the_metadata_is_refused(plain, key, change, words):
    graph = mapped(plain, "nyud20")
    entry = next(entry for entry in graph.metadata_props if entry.key == key)
    entry.value = json.dumps(json.loads(entry.value) | change)
    assert words in refused(GraphInfo.read, graph, "the graph")


def test_an_unknown_label_resolution_is_refused(plain):
    graph = mapped(plain, "nyud20", "half")
    assert "m2h.label_resolution is 'half'" in refused(GraphInfo.read, graph, "the graph")


def test_the_check_finds_a_wrong_group(plain, tiny_model, tmp_path):
    info = GraphInfo.read(plain, "the graph")
    classes, label_map = space("nyud20")
    references = references_of(tiny_model, *SIZE, info.normalization, label_map=label_map)[:1]
    path = tmp_path / "model.onnx"
    onnx.save(mapped(plain, "nyud20"), path)
    assert check_against(references, path).passed
    swapped = label_map.model_copy(update={"groups": (*label_map.groups[:2][::-1], *label_map.groups[2:])})
    graph = onnx.ModelProto()
    graph.CopyFrom(plain)
    reduce_semantics(graph, swapped)
    dataclasses.replace(info, classes=classes, label_map=label_map).write(graph)
    onnx.save(graph, path)
    failures = check_against(references, path).failures
    assert failures and all("semantics" in failure for failure in failures)


def test_options_that_need_labels_are_refused_without_them():
    nyud20 = load_label_space("nyud20")
    assert "needs the output semantics" in refused(ExportOptions, label_map=nyud20, tasks=("depth",))
    assert "need the output semantics" in refused(ExportOptions, label_resolution="full", tasks=("depth",))
    sensor = Sensor(CAMERA, outputs=("depth",))
    assert "needs the output semantics" in refused(ExportOptions, label_map=nyud20, sensor=sensor)
    assert "label resolution 'half'" in refused(ExportOptions, label_resolution="half")


def test_full_resolution_is_the_argmax_of_the_resized_logits_in_both_kinds_of_graph(plain):
    graph = mapped(plain, "nyud20", "full")
    image = np.ascontiguousarray(cv2.resize(render_room(3, 2, 240, 320).image, CAMERA))
    outputs = run_onnxruntime(with_logits(add_sensor(graph, Sensor(CAMERA)), "network/semantics"), image[None])
    logits = outputs["network/semantics"][0]
    large = np.stack([cv2.resize(plane, CAMERA, interpolation=cv2.INTER_LINEAR) for plane in logits])
    first, second = np.sort(large, axis=0)[::-1][:2]
    clear = first - second > 1e-4 * np.abs(large).max()  # the two resizes round differently
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(outputs["labels"][0][clear], large.argmax(0)[clear])
    near = cv2.resize(logits.argmax(0).astype(np.uint8), CAMERA, interpolation=cv2.INTER_NEAREST)
    assert (outputs["labels"][0] != near).any()


def test_a_plain_graph_of_full_resolution_is_postprocessed_like_that(plain):
    from m2h_deploy.runtime.postprocess import Postprocess

    logits = run_session(cpu_session(plain.SerializeToString(), "x"), np.ones((1, 3, *SIZE), np.float32))["semantics"]
    post = Postprocess((0.001, 10), full_labels=True)
    labels = post({"semantics": logits[0]}, 120, 160).semantics
    large = np.stack([cv2.resize(plane, CAMERA, interpolation=cv2.INTER_LINEAR) for plane in logits[0]])
    np.testing.assert_array_equal(labels, large.argmax(0))
    assert sum(buffer.nbytes for buffer in post._buffers.values()) <= 9 * 120 * 160
    small = post({"semantics": logits[0]}, *SIZE).semantics
    np.testing.assert_array_equal(small, logits[0].argmax(0))
