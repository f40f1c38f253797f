"""Test bundles whose graph has a label map: what they say, run, and are compared with."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest

from engines import build_bundle
from engines.precision.frames import open_pictures
from engines.precision.lowering import Lowering
from engines.tune.frames import Counts
from engines.tune.tune import TuneSettings, tune
from export import Sensor, add_sensor
from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.classes import NYU40_CLASSES, default_classes
from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.label_spaces.data import label_table
from m2h_deploy.label_spaces.read import load_label_space
from m2h_deploy.label_spaces.reduce import reduce_logits
from m2h_deploy.parity import Gates, verify
from m2h_deploy.parity.reference import open_reference
from tests.commands import done, refused
from tests.engines.graphs import small_graph, with_label_map

NYUD20 = load_label_space("nyud20").resolve(default_classes(41))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of a small graph, the same with a label map, of either resolution, and bundles of these."""
    folder = tmp_path_factory.mktemp("mapped")
    plain = small_graph(classes=41, scale=0.5)
    onnx.save(plain, folder / "plain.onnx")
    for name, resolution in (("near", "network"), ("full", "full")):
        graph = with_label_map(plain, *NYUD20, resolution)
        onnx.save(graph, folder / f"{name}.onnx")
        onnx.save(add_sensor(graph, Sensor((64, 48), outputs=("depth", "labels"))), folder / f"{name}-sensor.onnx")
    for name in ("plain", "near", "full", "near-sensor", "full-sensor"):
        build_bundle(folder / f"{name}.onnx", folder / name)
    return folder


def image_of(index: int = 0) -> np.ndarray:
    return np.ascontiguousarray(cv2.resize(render_room(3, index, 96, 128).image, (64, 48)))


def logits_of(folder, image: np.ndarray) -> np.ndarray:
    """Return the network's own logits, (1, 41, 16, 16)."""
    with Runtime.load(folder / "plain") as runtime:
        return runtime.backend.run(runtime.preprocess(image))["semantics"].copy()


def test_the_manifest_and_inspect_name_the_label_space(folder):
    manifest = load_bundle(folder / "full").manifest
    assert (manifest.classes, manifest.label_map) == NYUD20 and manifest.label_resolution == "full"
    assert {spec.name: spec.shape for spec in manifest.outputs}["semantics"] == (1, 21, 16, 16)
    printed = " ".join(done("inspect", folder / "full").split())
    assert (
        "nyud20: 21 classes, made of 41 of the network's 41" in printed
        and "logits resized to the image, then argmax" in printed
    )
    assert "nyud20" not in done("inspect", folder / "plain")


@pytest.mark.parametrize("kind", ["near", "full", "near-sensor", "full-sensor"])
def test_the_runtime_gives_the_labels_of_the_logits_reduced_outside(folder, kind):
    image = image_of()
    reduced = reduce_logits(logits_of(folder, image), NYUD20[1])[0]
    size = (64, 48)
    if kind.startswith("full"):
        large = np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in reduced])
        first, second = np.sort(large, axis=0)[::-1][:2]
        expected, clear = large.argmax(0), first - second > 1e-4 * np.abs(large).max()
    else:
        expected = cv2.resize(reduced.argmax(0).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        first, second = (cv2.resize(plane, size, interpolation=cv2.INTER_NEAREST) for plane in _best_two(reduced))
        clear = first - second > 1e-4 * np.abs(reduced).max()
    with Runtime.load(folder / kind) as runtime:
        labels = runtime(image).semantics
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], expected[clear])
    if "sensor" not in kind:  # the same pixels in the same engine
        np.testing.assert_array_equal(labels, expected)


def _best_two(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.sort(logits, axis=0)[::-1][:2]
    return first, second


@pytest.mark.parametrize("kind", ["near", "full-sensor"])
def test_verify_compares_with_a_reference_and_data_that_are_mapped_likewise(folder, kind):
    references = ["plain.onnx"] if "sensor" in kind else ["plain.onnx", f"{kind}.onnx"]
    rooms = Rooms(2, height=48, width=64)
    for reference in references:
        result = verify(folder / kind, folder / reference, rooms)
        semantics = next(task for task in result.tasks if task.task == "semantics")
        assert semantics.against == "labels"
        assert abs(semantics.worse_by) < 0.5, "the reference is not reduced as the engine is"
    table = label_table(NYU40_CLASSES, *NYUD20)
    labels = [table[frame.semantics] for frame in rooms]
    with Runtime.load(folder / kind) as runtime:
        predictions = [runtime(frame.image).semantics.astype(int) - 1 for frame in rooms]
    pairs = list(zip(predictions, labels, strict=True))
    ratios = []
    for index in np.unique(np.concatenate([label[label < 255] for label in labels])):
        hits, union = (
            sum(int((f(p == index, t == index) & (t < 255)).sum()) for p, t in pairs)
            for f in (np.logical_and, np.logical_or)
        )
        ratios.append(hits / union)
    assert semantics.engine == pytest.approx(100 * np.mean(ratios))


def test_a_reference_with_another_label_map_is_refused(folder, tmp_path):
    hydra = load_label_space("hydra").resolve(default_classes(41))
    onnx.save(with_label_map(onnx.load(folder / "plain.onnx"), *hydra), tmp_path / "hydra.onnx")
    spec = load_bundle(folder / "near").manifest.input
    assert "another label map" in refused(open_reference, tmp_path / "hydra.onnx", spec, None, NYUD20[1])
    assert "the label map nyud20, the engine none" in refused(open_reference, folder / "near.onnx", spec)
    other = NYUD20[1].model_copy(update={"network_classes": NYUD20[1].network_classes[:40]})
    assert "m2h-tiny has 41 classes, the engine's label map is for 40" in refused(
        open_reference, "m2h-tiny", spec, None, other
    )


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("onnxruntime", "int8"),
        pytest.param("openvino", "fp16", marks=pytest.mark.slow),
        pytest.param("openvino", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_lowered_graph_passes_its_self_test_and_never_predicts_an_empty_group(folder, tmp_path, engine, precision):
    """An empty group's logits must stay below the others after rounding, also where they are quantized."""
    classes, label_map = load_label_space("hydra").resolve(default_classes(41))
    graph = with_label_map(onnx.load(folder / "plain.onnx"), classes, label_map)
    onnx.save(graph, tmp_path / "hydra.onnx")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(12):
        cv2.imwrite(str(pictures / f"{index}.png"), image_of(index))
    lowering = Lowering(frames=open_pictures(pictures), count=10) if precision == "int8" else None
    bundle = build_bundle(
        tmp_path / "hydra.onnx", tmp_path / "b", engine=engine, precision=precision, lowering=lowering
    )
    test = bundle.manifest.self_test
    assert test is not None and test.measured["semantics"] < test.tolerance_of("semantics")
    assert bundle.manifest.label_map == label_map and bundle.manifest.classes == classes
    # The deviation is that of logits: a huge constant for empty groups would hide every error.
    assert test.outputs["semantics"].deviation < 10
    empty = {index for index, group in enumerate(label_map.groups) if not group}
    with Runtime.load(tmp_path / "b") as runtime:
        for index in range(3):
            assert empty.isdisjoint(np.unique(runtime(image_of(index)).semantics))


@pytest.mark.slow
def test_tune_judges_by_data_that_are_mapped_likewise(folder, tmp_path):
    """The data's 40 classes are not the 21 of the graph: unmapped, they would be refused."""
    done("rooms", tmp_path / "rooms", "--frames", 18, "--height", 48, "--width", 64)
    counts = Counts(calibration=6, search=2, check=8)
    gates = Gates(miou_drop=50, rmse_increase=50)
    settings = TuneSettings(("onnxruntime",), counts, gates=gates)
    result = tune(folder / "near.onnx", tmp_path / "rooms", tmp_path / "best", settings)
    assert result.winner is not None and "semantics.miou_drop" in result.winner.gates
    assert load_bundle(tmp_path / "best").manifest.label_map == NYUD20[1]
