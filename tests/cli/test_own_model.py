"""Test a custom network, with its own classes and normalization, from checkpoint to robot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from engines.precision.frames import calibration_frames, open_pictures
from export import Sensor, add_sensor
from m2h_deploy import M2HError, Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.packaging.mono_hydra import node_input, package_mono_hydra
from m2h_deploy.runtime.preprocess import Normalization, Preprocess
from m2h_deploy.visualize.draw import draw_semantics
from tests.commands import done, mistake, run_here

NAMES = [f"thing {index}" for index in range(13)]
COLORS = [[10 * index, 255 - 10 * index, index] for index in range(13)]
OWN = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
HEIGHT, WIDTH = 56, 70


@pytest.fixture(scope="module")
def network():
    """Return m2h-tiny with 13 classes and random weights."""
    from tests.networks import random_network

    return random_network("m2h-tiny", num_classes=13)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory) -> Path:
    """Return a folder of checkpoint, class list, both kinds of graph and bundle, and pictures, made by the commands."""
    from m2h_deploy.model import save_checkpoint

    folder = tmp_path_factory.mktemp("own")
    save_checkpoint(network, folder / "own.safetensors")
    entries = [{"name": name, "color": color} for name, color in zip(NAMES, COLORS, strict=True)]
    (folder / "classes.json").write_text(json.dumps(entries))
    (folder / "pictures").mkdir()
    for index in range(8):
        cv2.imwrite(str(folder / "pictures" / f"{index}.png"), render_room(1, index, 48, 64).image)
    size = ("--height", HEIGHT, "--width", WIDTH)
    own = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3", "--classes", folder / "classes.json")
    done("export", folder / "own.safetensors", "-o", folder / "plain.onnx", *size, *own)
    onnx.save(add_sensor(onnx.load(folder / "plain.onnx"), Sensor((64, 48))), folder / "sensor.onnx")
    for name in ("plain", "sensor"):
        done("build", folder / f"{name}.onnx", "-o", folder / name, "--threads", 1)
    return folder


@pytest.mark.parametrize("kind", ["plain", "sensor"])
def test_the_manifest_holds_what_was_given(folder, kind):
    manifest = load_bundle(folder / kind).manifest
    assert manifest.classes.names == tuple(NAMES)
    assert manifest.classes.palette == tuple(map(tuple, COLORS))
    assert (manifest.input.mean, manifest.input.std) == (OWN.mean, OWN.std)
    assert (manifest.network_input.height, manifest.network_input.width) == (HEIGHT, WIDTH)


def by_hand(network, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the network's outputs on a BGR image that is normalized as in training."""
    import torch

    rgb = cv2.resize(image, (WIDTH, HEIGHT))[:, :, ::-1].astype(np.float64) / 255
    tensor = ((rgb - OWN.mean) / OWN.std).astype(np.float32).transpose(2, 0, 1)[None]
    with torch.inference_mode():
        return {name: value.numpy() for name, value in network(torch.from_numpy(np.ascontiguousarray(tensor))).items()}


@pytest.mark.parametrize("kind", ["plain", "sensor"])
def test_the_runtime_normalizes_as_in_training(network, folder, kind):
    image = render_room(5, 0, 48, 64).image
    expected = by_hand(network, image)
    with Runtime.load(folder / kind, threads=1) as runtime:
        prediction = runtime(image)
    depth = cv2.resize(expected["depth"][0, 0], (64, 48))
    np.testing.assert_allclose(prediction.depth, depth.clip(1e-3, 10), atol=5e-3)
    labels = cv2.resize(expected["semantics"][0].argmax(0).astype(np.uint8), (64, 48), interpolation=cv2.INTER_NEAREST)
    assert np.mean(prediction.semantics == labels) > 0.99


def test_run_draws_the_labels_in_the_colors_that_were_given(folder, tmp_path):
    done("run", folder / "plain", folder / "pictures", "-o", tmp_path / "out", "--limit", 1, "--npz")
    labels = np.load(tmp_path / "out" / "0.npz")["semantics"]
    classes = load_bundle(folder / "plain").manifest.classes
    drawn = draw_semantics(labels, classes)
    assert {tuple(color) for color in drawn[:, :, ::-1].reshape(-1, 3).tolist()} == {
        tuple(COLORS[label]) for label in np.unique(labels)
    }


@pytest.mark.parametrize("kind", ["plain", pytest.param("sensor", marks=pytest.mark.slow)])
def test_verify_passes_and_locates_no_diverging_block(folder, kind, tmp_path):
    common = ("--reference", folder / "own.safetensors", "--data", folder / "pictures", "--locate")
    result = json.loads(run_here("verify", folder / kind, *common, "--json").stdout)
    assert result["located"]["block"] is None
    figures = {task["task"]: task for task in result["tasks"]}
    assert set(figures) == {"depth", "semantics", "normals", "edges"}


def test_calibration_frames_are_normalized_by_the_graphs_metadata(folder):
    path = folder / "plain.onnx"
    card = GraphInfo.read(onnx.load(path), path)
    pictures = open_pictures(str(folder / "pictures"))
    frame = next(calibration_frames(pictures, card.normalization, height=HEIGHT, width=WIDTH))
    image = cv2.imread(str(folder / "pictures" / "0.png"))
    np.testing.assert_array_equal(frame, Preprocess(OWN, HEIGHT, WIDTH)(image))


@pytest.mark.slow
def test_fp16_is_measured_on_frames_of_that_normalization_and_stays_close(folder, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization")
    graph = tmp_path / "fp16.onnx"
    lowering = ("--engine", "openvino", "--precision", "fp16", "--calibration", folder / "pictures", "--graph", graph)
    done("build", folder / "sensor.onnx", "-o", tmp_path / "a", *lowering)
    done("build", graph, "-o", tmp_path / "b")
    before, after = (load_bundle(tmp_path / name).manifest for name in "ab")
    assert after.classes.names == tuple(NAMES)
    assert after.input.mean == OWN.mean
    assert after.lowering == before.lowering
    assert min(after.lowering.psnr.values()) > 35


def test_mono_hydras_node_gets_a_graph_for_its_own_normalization(network, folder, tmp_path):
    package_mono_hydra(folder / "plain", tmp_path / "hydra")
    image = render_room(5, 0, 48, 64).image
    session = ort.InferenceSession(tmp_path / "hydra" / "m2h.onnx", providers=["CPUExecutionProvider"])
    depth = session.run(["depth"], {"image": node_input(image, HEIGHT, WIDTH)})[0]
    np.testing.assert_allclose(depth, by_hand(network, image)["depth"], rtol=1e-2, atol=1e-2)


def test_the_c_library_and_triton_get_the_names(folder, tmp_path):
    done("package", folder / "sensor", "--cpp", "-o", tmp_path / "cpp")
    done("package", folder / "plain", "--triton", tmp_path / "models")
    for bundle in (tmp_path / "cpp" / "bundle", tmp_path / "models" / "m2h" / "1" / "bundle"):
        assert load_bundle(bundle).manifest.classes.names == tuple(NAMES)


def test_a_data_set_of_other_classes_is_refused(folder):
    from m2h_deploy.data.rooms.render import Rooms
    from m2h_deploy.parity import verify

    with pytest.raises(M2HError, match="the data has 40 classes, the engine 13"):
        verify(folder / "plain", folder / "own.safetensors", Rooms(8, height=48, width=64))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mean", "0.5,0.5,0.5"), "give both"),
        (("--std", "0.5,0.5,0.5"), "give both"),
        (("--preset", "imagenet", "--mean", "0,0,0", "--std", "1,1,1"), "not both"),
        (("--mean", "123.675,116.28,103.53", "--std", "58.4,57.1,57.4"), "divide by 255"),
        (("--mean", "0.5,0.5", "--std", "0.5,0.5,0.5"), "one for each of R, G and B"),
        (("--mean", "a,b,c", "--std", "0.5,0.5,0.5"), "three numbers"),
        (("--mean", "0.5,0.5,nan", "--std", "0.5,0.5,0.5"), "finite"),
        (("--mean", "0.5,0.5,0.5", "--std", "0.5,0,0.5"), "above 0"),
        (("--classes", "nowhere.json"), "nowhere.json"),
        (("--camera-size", "64x48"), "give --sensor"),
        (("--depth-format", "uint16"), "give --sensor"),
        (("--outputs", "depth,flow"), "output 'flow'"),
        (("--outputs", ""), "output ''"),
        (("--batch", "2", "--dynamic-batch"), "no effect"),
        (("--opset", "0"), "opset 0"),
    ],
)
def test_invalid_options_are_refused_before_the_checkpoint_is_opened(options, says, tmp_path):
    assert says in mistake("export", tmp_path / "no.pt", "-o", tmp_path / "m.onnx", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_class_list_of_another_length_gives_an_error_with_both_lengths(folder, tmp_path):
    (tmp_path / "twelve.json").write_text(json.dumps(NAMES[:12]))
    said = mistake(
        "export", folder / "own.safetensors", "-o", tmp_path / "m.onnx", "--classes", tmp_path / "twelve.json"
    )
    assert "12 classes are named, the checkpoint has 13" in said
    assert "'unknown'" in said
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(("sensor", "name"), [((), "labels"), (("--sensor", "uint8"), "semantics")])
@pytest.mark.slow
def test_one_option_chooses_the_outputs_of_both_kinds_of_graph(folder, sensor, name, tmp_path):
    size = ("--height", 28, "--width", 28, *((*sensor, "--camera-size", "32x32") if sensor else ()))
    graph = tmp_path / "m.onnx"
    done("export", folder / "own.safetensors", "-o", graph, *size, "--outputs", f"edges,{name}")
    outputs = [value.name for value in onnx.load(graph).graph.output]
    assert outputs == ["labels" if sensor else "semantics", "edges"]


def test_a_normalization_round_trips_bit_for_bit():
    odd = Normalization((1 / 3, math.pi / 10, 0.1), (0.1 + 0.2, 1e-3, 1.0))
    assert Normalization.from_json(odd.to_json()) == odd
