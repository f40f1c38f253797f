"""Test the package for semantic_inference by the rules of its own loaders, and its labels by its node's steps."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml

from engines import build_bundle
from export import Sensor, add_sensor
from m2h_deploy import Runtime
from m2h_deploy.blocks import blocks_in
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.classes import default_classes
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.label_spaces.read import load_label_space
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.packaging.hydra import package_hydra
from m2h_deploy.packaging.mono_hydra import package_mono_hydra
from tests.commands import done, refused
from tests.engines.graphs import with_label_map

#: Labels of Hydra's config/label_spaces/ade20k_mp3d_label_space.yaml that are objects, and that have places.
OBJECTS = [3, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 18, 19, 20, 21, 22, 23, 25, 27, 28, 30, 31, 32, 33, 34, 35, 36, 37]
PLACES = [2, 16]


@pytest.fixture(scope="module")
def mapped_onnx(tiny_onnx, tmp_path_factory):
    """Return a graph that gives Hydra's labels."""
    folder = tmp_path_factory.mktemp("mapped")
    graph = onnx.load(tiny_onnx)
    info = GraphInfo.read(graph, tiny_onnx)
    classes, label_map = load_label_space("hydra").resolve(info.classes)
    onnx.save(with_label_map(graph, classes, label_map), folder / "mapped.onnx")
    return folder / "mapped.onnx"


@pytest.fixture(scope="module")
def mapped_bundle(mapped_onnx):
    """Return a bundle of it for ONNX Runtime."""
    build_bundle(mapped_onnx, mapped_onnx.with_name("bundle"))
    return mapped_onnx.with_name("bundle")


@pytest.fixture(scope="module")
def packaged(mapped_onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("hydra") / "out"
    done("package", mapped_onnx, "--hydra", "-o", out)
    return out


@pytest.fixture(scope="module")
def session(packaged):
    return ort.InferenceSession(packaged / "m2h.onnx", providers=["CPUExecutionProvider"])


def test_the_model_has_the_interface_that_the_node_accepts(session):
    """ModelInfo takes one color input and one output; DimInfo reads the last three dimensions of each."""
    (image,), (labels,) = session.get_inputs(), session.get_outputs()
    assert image.type == "tensor(float)" and labels.type == "tensor(int32)"
    assert image.shape[-3] == 3 and 3 not in image.shape[-2:]
    assert labels.shape == [1, *image.shape[-2:]] and len(labels.shape) == 3


def test_the_model_holds_only_what_labels_need(packaged, mapped_onnx):
    graph = onnx.load(packaged / "m2h.onnx")
    blocks = set(blocks_in(graph))
    assert "heads.semantics" in blocks and not blocks & {"heads.depth", "heads.normals", "heads.edges"}
    assert len(graph.graph.node) < len(onnx.load(mapped_onnx).graph.node)
    onnx.checker.check_model(graph, full_check=True)


def fill_image(rgb: np.ndarray, color: dict, height: int, width: int) -> np.ndarray:
    """Do what `ColorConverter::fillImage` does, pixel by pixel in its words."""
    known = {"mean", "stddev", "map_to_unit_range", "normalize", "rgb_order"}
    assert color.keys() <= known
    image = cv2.resize(rgb, (width, height))
    addresses = (2, 1, 0) if color.get("rgb_order", True) else (0, 1, 2)
    planes = []
    for channel, address in enumerate(addresses):
        plane = image[:, :, address].astype(np.float32)
        if color.get("map_to_unit_range", True):
            plane = plane / np.float32(255)
        if color.get("normalize", True):
            plane = (plane - np.float32(color["mean"][channel])) / np.float32(color["stddev"][channel])
        planes.append(plane)
    return np.stack(planes)[None].astype(np.float32)


def load_colormap(path) -> dict[int, tuple[int, int, int]]:
    """Read the color file as `loadColormap` of image_recolor.cpp does: six columns, the first row is skipped."""
    colors = {}
    for row in path.read_text().splitlines()[1:]:
        columns = row.split(",")
        assert len(columns) == 6, row
        colors[int(columns[5])] = tuple(int(level) for level in columns[1:4])
    return colors


def test_the_node_s_steps_give_the_runtime_s_labels(packaged, session, mapped_bundle):
    color = yaml.safe_load((packaged / "m2h.yaml").read_text())["segmenter"]["model"]["color"]
    groups = yaml.safe_load((packaged / "m2h_grouping.yaml").read_text())["groups"]
    remapping = {label: index for index, group in enumerate(groups) for label in group["labels"]}
    image = render_room(3, 1, 120, 160).image
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # toCvShare(msg, "rgb8")
    _, _, height, width = session.get_inputs()[0].shape
    (labels,) = session.run(None, {"image": fill_image(rgb, color, height, width)})
    resized = cv2.resize(labels[0].astype(np.int16), (160, 120), interpolation=cv2.INTER_NEAREST)
    published = np.vectorize(remapping.__getitem__)(resized)
    with Runtime.load(mapped_bundle, threads=1) as runtime:
        expected = runtime(image).semantics
    assert np.mean(published == expected) > 0.999  # the same network on pixels that were rounded differently
    assert len(np.unique(expected)) > 2


def test_colors_and_names_are_those_of_the_manifest(packaged, mapped_bundle):
    classes = load_bundle(mapped_bundle).manifest.classes
    assert load_colormap(packaged / "m2h_colors.csv") == dict(enumerate(classes.palette))
    assert (packaged / "m2h_colors.csv").read_text().startswith("name,red,green,blue,alpha,id\n")
    grouping = yaml.safe_load((packaged / "m2h_grouping.yaml").read_text())
    assert grouping["groups"] == [{"name": name, "labels": [index]} for index, name in enumerate(classes.names)]


def test_the_label_space_has_the_fields_of_hydra_s_and_for_its_own_space_their_values(packaged, mapped_bundle):
    space = yaml.safe_load((packaged / "m2h_label_space.yaml").read_text())
    names = load_bundle(mapped_bundle).manifest.classes.names
    assert space["total_semantic_labels"] == 39
    assert space["label_names"] == [{"label": index, "name": name} for index, name in enumerate(names)]
    assert (space["object_labels"], space["surface_places_labels"]) == (OBJECTS, PLACES)
    assert (space["dynamic_labels"], space["invalid_labels"]) == ([], [0])


def test_graphs_that_the_node_does_not_take_are_refused(tiny_onnx, mapped_bundle, tmp_path):
    message = refused(package_hydra, mapped_bundle, tmp_path / "out")
    assert "has operators of com.microsoft" in message and "not a bundle" in message
    graph = onnx.load(tiny_onnx)
    onnx.save(add_sensor(graph, Sensor((160, 120))), tmp_path / "sensor.onnx")
    assert "takes raw pixels" in refused(package_hydra, tmp_path / "sensor.onnx", tmp_path / "out")
    info = GraphInfo.read(graph, tiny_onnx)
    classes = default_classes(41)
    same = classes.model_copy(update={"palette": (classes.palette[1], *classes.palette[1:])})
    dataclasses.replace(info, classes=same).write(graph)
    onnx.save(graph, tmp_path / "colors.onnx")
    assert "'unknown' and 'wall' have the same color" in refused(
        package_hydra, tmp_path / "colors.onnx", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("package", "node"), [(package_hydra, "semantic_inference"), (package_mono_hydra, "Mono-Hydra's node")]
)
def test_labels_of_full_resolution_which_the_node_ignores_are_a_warning(tiny_onnx, tmp_path, caplog, package, node):
    package(tiny_onnx, tmp_path / "plain")
    assert caplog.messages == []
    graph = onnx.load(tiny_onnx)
    dataclasses.replace(GraphInfo.read(graph, tiny_onnx), label_resolution="full").write(graph)
    onnx.save(graph, tmp_path / "full.onnx")
    package(tmp_path / "full.onnx", tmp_path / "out")
    (message,) = caplog.messages
    assert message.startswith(
        f"{tmp_path / 'full.onnx'} was exported with --labels full-resolution, which {node} ignores"
    )
