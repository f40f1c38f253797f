"""Test `export --label-map` from a checkpoint to a verified bundle, and what it refuses."""

from __future__ import annotations

import onnx
import pytest

from engines import build_bundle
from export.locate import locate_difference
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import dims_of
from m2h_deploy.parity import verify
from tests.commands import done, mistake


@pytest.fixture(scope="module")
def sensor_bundle(tiny_checkpoint, tmp_path_factory):
    """Export a sensor graph with both options, by the command, which checks it against the network, and build it."""
    folder = tmp_path_factory.mktemp("label-map")
    size = ("--height", 56, "--width", 70, "--sensor", "uint8", "--camera-size", "64x48")
    labels = ("--label-map", "hydra", "--labels", "full-resolution")
    printed = done("export", tiny_checkpoint, "-o", folder / "sensor.onnx", *size, *labels)
    assert printed.count("semantics") == 2 and printed.count("labels") == 2
    build_bundle(folder / "sensor.onnx", folder / "bundle")
    return folder / "bundle"


@pytest.mark.slow
def test_the_command_writes_a_graph_with_a_channel_for_each_class_of_the_map(tiny_checkpoint, tmp_path):
    """The command compares it with the checkpoint, whose logits are reduced likewise."""
    output = tmp_path / "model.onnx"
    options = ("--height", 28, "--width", 28, "--outputs", "semantics", "--label-map", "nyud20")
    done("export", tiny_checkpoint, "-o", output, *options, "--labels", "full-resolution")
    graph = onnx.load(output)
    info = GraphInfo.read(graph, output)
    assert [dims_of(value) for value in graph.graph.output] == [(1, 21, 28, 28)]
    assert info.label_map.name == "nyud20" and info.label_resolution == "full"
    assert info.classes.names[:3] == ("unknown", "wall", "floor")


@pytest.mark.slow
def test_an_exported_sensor_graph_agrees_with_the_checkpoint_reduced_likewise(sensor_bundle, tiny_checkpoint):
    manifest = load_bundle(sensor_bundle).manifest
    assert manifest.label_map.name == "ade20k_mp3d" and manifest.label_resolution == "full"
    result = verify(sensor_bundle, tiny_checkpoint, Rooms(2, height=48, width=64))
    semantics = next(task for task in result.tasks if task.task == "semantics")
    assert semantics.against == "labels" and abs(semantics.worse_by) < 0.5


@pytest.mark.slow
def test_locate_exports_the_reference_with_the_same_labels(sensor_bundle, tiny_checkpoint):
    located = locate_difference(load_bundle(sensor_bundle), str(tiny_checkpoint))
    assert located.block is None and "heads.semantics" in {block.name for block in located.blocks}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--label-map", "missing"), "no label map 'missing'"),
        (("--label-map", "hydra", "--outputs", "depth"), "needs the output semantics"),
        (("--labels", "full-resolution", "--outputs", "depth"), "need the output semantics"),
    ],
)
def test_options_are_refused_before_the_checkpoint_is_loaded(tmp_path, options, words):
    assert words in mistake("export", tmp_path / "missing.pt", "-o", tmp_path / "model.onnx", *options)


def test_a_map_for_another_number_of_classes_is_refused(tmp_path):
    (tmp_path / "map.yaml").write_text("[{sub_id: 1, super_id: 41}]")
    message = mistake("export", "m2h-tiny", "-o", tmp_path / "model.onnx", "--label-map", tmp_path / "map.yaml")
    assert "class 41, and the network has 41, 0 to 40" in message
    assert not (tmp_path / "model.onnx").exists()
