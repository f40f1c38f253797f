"""Test maps of a short walk through a room: figures, resumed runs, damaged data, refused input."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import m2h_deploy.mapping.predictions
from engines import build_bundle
from m2h_deploy.data.classes import default_classes
from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.label_spaces.space import LabelSpace, SpaceClass
from m2h_deploy.mapping.fuse import Fusion, VolumeSettings
from m2h_deploy.mapping.mesh import read_mesh
from m2h_deploy.mapping.result import MapResult
from m2h_deploy.mapping.run import MapSettings, map_sequence, unique_names
from tests.commands import refused
from tests.engines.graphs import with_label_map
from tests.mapping.conftest import depth_graph

pytestmark = pytest.mark.usefixtures("coarse")

LIMIT = 8
SETTINGS = MapSettings(limit=LIMIT)
RAW = replace(SETTINGS, filtered=False)


@pytest.fixture(scope="module")
def sequence(room):
    return open_sequence(room)


@pytest.fixture(scope="module")
def mapped(coarse, nyu_bundle, sequence, tmp_path_factory) -> tuple[MapResult, Path]:
    out = tmp_path_factory.mktemp("mapped") / "map"
    return map_sequence([nyu_bundle], sequence, out, replace(SETTINGS, truth=True)), out


def untimed(result: MapResult) -> dict[str, Any]:
    """Return a result without what depends on time."""
    content = result.to_json()
    for row in content["rows"]:
        del row["rates"], row["frame_age"]
    return content


def fails(*arguments, **options):
    raise AssertionError("must not run again")


def test_each_variant_is_a_row_with_figures_and_files(mapped):
    result, out = mapped
    assert [(row.name, row.kind) for row in result.rows] == [
        ("small-41", "raw"), ("small-41 filtered", "filtered"), ("ground truth", "truth"),
    ]  # fmt: skip
    for row in result.rows:
        assert (row.frames, {score.alignment for score in row.maps} >= {"none", "se3"}) == (LIMIT, True)
        assert all(math.isfinite(value) for value in row.figures.values())
        mesh = read_mesh(out / row.file)
        assert len(mesh.triangles) == row.triangles > 0
        assert mesh.labels.min() < 40
    raw, filtered, truth = result.rows
    assert {score.alignment for score in raw.maps} >= {"none", "scale", "se3"}
    assert {score.alignment for score in truth.maps} == {"none", "se3", "sim3"}
    assert raw.rates.keys() == {"preprocess", "inference", "postprocess", "fuse"}
    assert filtered.rates.keys() == raw.rates.keys() | {"filter"}
    assert filtered.frame_age > raw.frame_age > 0
    assert truth.frame_age is None
    assert json.loads((out / "map.json").read_text()) == json.loads(json.dumps(result.to_json()))


def test_the_truth_is_the_floor_of_all_figures(mapped):
    raw, filtered, truth = mapped[0].rows
    assert (truth.figures["rmse"], truth.figures["miou"]) == (0, 1)
    best = truth.score("none").figures
    assert best["mean"] < 0.02
    assert best["fscore"] > 0.9
    for row in (raw, filtered):
        assert row.score("none").figures["mean"] > 3 * best["mean"]
        assert row.figures["tae"] > truth.figures["tae"]


def test_filtered_is_compared_with_raw_and_the_truth_with_nothing(mapped):
    result, _ = mapped
    assert {(d.row, d.against) for d in result.differences} == {("small-41 filtered", "small-41")}
    figures = {(d.figure, d.alignment) for d in result.differences}
    assert {("rmse", None), ("tae", None), ("mean", "none"), ("fscore", "se3")} <= figures
    raw, filtered, _ = result.rows
    for d in result.differences:
        one, other = (row.figures if d.alignment is None else row.score(d.alignment).figures for row in (filtered, raw))
        assert d.value == pytest.approx(one[d.figure] - other[d.figure], abs=1e-9)
        assert d.interval[0] <= d.value <= d.interval[1]


def test_a_second_run_does_nothing_again(mapped, nyu_bundle, sequence, monkeypatch):
    result, out = mapped
    monkeypatch.setattr(m2h_deploy.mapping.predictions, "predict_item", fails)
    monkeypatch.setattr(Fusion, "run", fails)
    again = map_sequence([nyu_bundle], sequence, out, replace(SETTINGS, truth=True))
    assert again.to_json() == result.to_json()
    raw = map_sequence([nyu_bundle], sequence, out, RAW)
    assert raw.rows == result.rows[:1]


def test_a_run_that_was_stopped_while_predicting_and_while_fusing_gives_the_same(
    nyu_bundle, sequence, mapped, tmp_path, monkeypatch
):
    calls = []

    def stopping(number: int, real):
        def call(*arguments, **options):
            calls.append(number)
            if calls.count(number) == 5:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    predict = stopping(0, m2h_deploy.mapping.predictions.predict_item)
    monkeypatch.setattr(m2h_deploy.mapping.predictions, "predict_item", predict)
    monkeypatch.setattr(Fusion, "_integrate", stopping(1, Fusion._integrate))
    out = tmp_path / "map"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            map_sequence([nyu_bundle], sequence, out, RAW)
    again = map_sequence([nyu_bundle], sequence, out, RAW)
    assert calls.count(0) == LIMIT + 1
    first = replace(
        mapped[0],
        rows=mapped[0].rows[:1],
        differences=(),
        problems=tuple(problem for problem in mapped[0].problems if "filtered" not in problem),
        pictures={"small-41": again.pictures["small-41"]},
    )
    assert untimed(again) == untimed(first)
    assert (out / "small-41.ply").read_bytes() == (mapped[1] / "small-41.ply").read_bytes()


def test_other_settings_fuse_again_and_predict_nothing(mapped, nyu_bundle, sequence, tmp_path, monkeypatch):
    out = tmp_path / "map"
    shutil.copytree(mapped[1], out)
    monkeypatch.setattr(m2h_deploy.mapping.predictions, "predict_item", fails)
    coarse = map_sequence([nyu_bundle], sequence, out, replace(RAW, volume=VolumeSettings(0.1, 0.3)))
    assert coarse.rows[0].triangles < mapped[0].rows[0].triangles / 2
    assert coarse.rows[0].figures == mapped[0].rows[0].figures
    (out / "small-41.ply").unlink()
    map_sequence([nyu_bundle], sequence, out, replace(RAW, volume=VolumeSettings(0.1, 0.3)))
    assert (out / "small-41.ply").is_file()


def test_going_back_to_earlier_settings_or_predictions_makes_their_mesh_again(mapped, nyu_bundle, sequence, tmp_path):
    out = tmp_path / "map"
    shutil.copytree(mapped[1], out)
    mesh = out / "small-41.ply"
    first = mesh.read_bytes()
    map_sequence([nyu_bundle], sequence, out, replace(RAW, volume=VolumeSettings(0.1, 0.3)))
    other = mesh.read_bytes()
    assert map_sequence([nyu_bundle], sequence, out, RAW).rows[0].triangles == mapped[0].rows[0].triangles
    assert mesh.read_bytes() == first != other
    depth = sorted((out / "predictions" / "small-41" / "depth").iterdir())[0]
    depth.write_bytes(depth.read_bytes()[:50])
    assert map_sequence([nyu_bundle], sequence, out, RAW).rows[0].frames == LIMIT - 1
    depth.unlink()
    map_sequence([nyu_bundle], sequence, out, RAW)
    assert mesh.read_bytes() == first


def test_a_damaged_depth_image_is_counted_and_named_and_labels_that_a_map_does_not_use_are_not_read(
    nyu_bundle, room, tmp_path
):
    damaged = tmp_path / "room"
    shutil.copytree(room, damaged)
    file = sorted((damaged / "depth").iterdir())[3]
    file.write_bytes(file.read_bytes()[:100])
    sorted((damaged / "normals").iterdir())[2].write_bytes(b"no image")
    said: list[str] = []
    settings = replace(RAW, truth=True)
    result = map_sequence([nyu_bundle], open_sequence(damaged), tmp_path / "map", settings, say=said.append)
    assert [(row.frames, list(row.left_out)) for row in result.rows] == [(LIMIT - 1, [file.stem])] * 2
    about = [problem for problem in result.problems if "cannot be read" in problem]
    assert len(about) == 2
    assert all(file.name in problem for problem in about)
    assert said == list(result.problems)


def test_without_a_surface_the_true_depth_is_fused_and_without_depth_there_are_no_figures(
    nyu_bundle, sequence, tmp_path
):
    fused = map_sequence([], replace(sequence, surface=None), tmp_path / "fused", replace(RAW, truth=True))
    assert fused.surface == "a map of the true depth"
    assert fused.rows[0].score("none").figures["mean"] < 0.01

    blind = replace(sequence, surface=None, label_readers={}, class_names=())
    result = map_sequence([nyu_bundle], blind, tmp_path / "blind", RAW)
    row = result.rows[0]
    assert (result.surface, row.maps) == (None, ())
    assert math.isnan(row.figures["rmse"])
    assert row.figures["tae"] > 0
    assert any("figures of accuracy are left out" in problem for problem in result.problems)
    assert "has no depth" in refused(map_sequence, [], blind, tmp_path / "truth", replace(RAW, truth=True))


def test_a_surface_that_no_frame_shows_is_a_problem(sequence, room, tmp_path):
    mesh = read_mesh(room / "surface.ply")
    mesh.at(mesh.vertices + 100).write(tmp_path / "elsewhere.ply", np.zeros((40, 3), np.uint8))
    elsewhere = replace(sequence, surface=tmp_path / "elsewhere.ply")
    result = map_sequence([], elsewhere, tmp_path / "map", replace(RAW, truth=True))
    assert "is it in the coordinates of the poses?" in "\n".join(result.problems)
    assert math.isnan(result.rows[0].score("none").figures["completeness"])


def test_a_sequence_that_is_too_slow_for_the_filter_is_a_problem(nyu_bundle, sequence, tmp_path):
    slow = tuple(replace(moment, timestamp=4 * moment.timestamp) for moment in sequence.moments)
    settings = replace(SETTINGS, raw=False, limit=4)
    result = map_sequence([nyu_bundle], replace(sequence, moments=slow), tmp_path / "map", settings)
    words = "small-41 filtered: the filter dropped the past before 3 of 4 frames: pause 3"
    assert words in result.problems


def test_labels_of_a_label_map_are_judged_by_the_sequence_s_labels_mapped_likewise(sequence, tmp_path):
    """With one class for all, every label is right; compared with unmapped labels, hardly any would be."""
    space = LabelSpace("one", (SpaceClass("unknown", ("unknown",)), SpaceClass("any", rest=True)), "the test")
    onnx.save(with_label_map(depth_graph(41), *space.resolve(default_classes(41))), tmp_path / "one.onnx")
    build_bundle(tmp_path / "one.onnx", tmp_path / "one")
    result = map_sequence([tmp_path / "one"], sequence, tmp_path / "map", RAW)
    assert not any("figures of labels" in problem for problem in result.problems)
    assert result.rows[0].score("none").figures["label_accuracy"] == 1
    assert result.rows[0].figures["miou"] > 0.5  # less than 1 where the network says `unknown`


def test_other_classes_are_mapped_and_not_judged(small_bundle, sequence, tmp_path):
    result = map_sequence([small_bundle], sequence, tmp_path / "map", RAW)
    assert any("figures of labels are left out" in problem for problem in result.problems)
    assert math.isnan(result.rows[0].score("none").figures["label_accuracy"])
    assert "miou" not in result.rows[0].figures
    labels = read_mesh(tmp_path / "map" / "small-4.ply").labels
    assert 0 < len(set(labels.tolist()) - {255}) <= 4


def test_a_bundle_without_semantics_makes_a_map_without_labels(bundle_of, sequence, tmp_path):
    result = map_sequence([bundle_of(0)], sequence, tmp_path / "map", replace(SETTINGS, limit=4))
    assert any("its map has no labels" in problem for problem in result.problems)
    assert set(read_mesh(tmp_path / "map" / "small-0.ply").labels.tolist()) == {255}


def test_two_bundles_are_compared_and_have_different_names(nyu_bundle, sequence, tmp_path):
    copy = tmp_path / "copy" / nyu_bundle.name
    shutil.copytree(nyu_bundle, copy)
    result = map_sequence([nyu_bundle, copy], sequence, tmp_path / "map", replace(RAW, limit=4))
    assert [row.name for row in result.rows] == ["small-41", "small-41-2"]
    assert {(d.row, d.against, d.verdict) for d in result.differences} == {("small-41-2", "small-41", "equal")}
    assert unique_names([Path("a"), Path("b/a"), Path("a.filtered"), Path("ground truth")]) == [
        "a", "a-2", "a.filtered-2", "ground truth-2",
    ]  # fmt: skip


def test_what_cannot_be_mapped_is_one_line(nyu_bundle, sequence, room, tmp_path):
    out = tmp_path / "map"
    lost = replace(sequence, moments=tuple(replace(moment, pose=None) for moment in sequence.moments))
    assert "--poses FILE" in refused(map_sequence, [nyu_bundle], lost, out)
    assert "give a bundle, or --truth" in refused(map_sequence, [], sequence, out)
    none = MapSettings(raw=False, filtered=False)
    assert "raw, filtered or both" in refused(map_sequence, [nyu_bundle], sequence, out, none)
    assert "is not a bundle" in refused(map_sequence, [tmp_path], sequence, out)
    assert "lies in the bundle" in refused(map_sequence, [nyu_bundle], sequence, nyu_bundle / "map")
    assert "is the sequence itself" in refused(map_sequence, [nyu_bundle], sequence, room)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small-41.ply").write_text("mine")
    assert "did not write it" in refused(map_sequence, [nyu_bundle], sequence, tmp_path / "mine")
    wrong = replace(RAW, volume=VolumeSettings(voxel=0.2))
    assert "truncation" in refused(map_sequence, [nyu_bundle], sequence, out, wrong)
    assert not out.exists()


def test_a_bundle_without_depth_is_one_line(nyu_bundle, sequence, tmp_path):
    from m2h_deploy.bundle.folder import load_bundle
    from tests.manifests import changed

    outputs = tuple(spec for spec in load_bundle(nyu_bundle).manifest.outputs if spec.name != "depth")
    other = changed(nyu_bundle, tmp_path / "labels", outputs=outputs)
    assert "does not predict depth" in refused(map_sequence, [other], sequence, tmp_path / "map")


def test_positions_of_a_map_do_not_depend_on_unfused_frames(nyu_bundle, sequence, tmp_path):
    moments = list(sequence.moments)
    moments[2] = replace(moments[2], pose=None)
    result = map_sequence([nyu_bundle], replace(sequence, moments=tuple(moments)), tmp_path / "map", RAW)
    assert (result.frames, result.posed, result.rows[0].frames) == (LIMIT, LIMIT - 1, LIMIT - 1)
    assert len(list((tmp_path / "map" / "predictions" / "small-41" / "depth").iterdir())) == LIMIT
    assert any("1 of 8 frames have no pose" in problem for problem in result.problems)
    assert np.isfinite(result.rows[0].score("none").figures["mean"])


def test_an_empty_map_is_said(sequence, tmp_path):
    near = MapSettings(truth=True, limit=4, volume=VolumeSettings(depth_range=(0.01, 0.02)))
    result = map_sequence([], sequence, tmp_path / "map", near)
    assert result.rows[0].triangles == 0
    assert any(problem.startswith("ground truth: the map is empty") for problem in result.problems)
