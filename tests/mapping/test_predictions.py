"""Test that predictions on disk are complete, resumable, and of one bundle and sequence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import m2h_deploy.mapping.predictions as predictions
from m2h_deploy import Runtime
from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Moment, Sequence
from m2h_deploy.data.sequences.open import open_sequence
from m2h_deploy.data.sequences.tum import DEPTH_SCALE
from m2h_deploy.files.images import read_image
from m2h_deploy.mapping.predictions import predict_sequence, stored_labels
from m2h_deploy.runtime.runtime import Runtime as RuntimeClass
from tests.commands import refused
from tests.manifests import changed

FRAMES = 4


def read(moment: Moment) -> np.ndarray:
    return read_image(moment.files[0])


@pytest.fixture
def sequence(tmp_path) -> Sequence:
    folder = tmp_path / "sequence"
    folder.mkdir()
    rng = np.random.default_rng(0)
    moments = []
    for index in range(FRAMES):
        file = folder / f"{index}.png"
        cv2.imwrite(str(file), rng.integers(0, 256, (24, 32, 3), np.uint8))
        moments.append(Moment(str(index), 1000 + index / 10, None, (file,)))
    return Sequence(folder, tuple(moments), read, Intrinsics(30, 30, 15.5, 11.5), (24, 32))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.png")}


def test_depth_and_labels_on_disk_are_those_of_the_runtime(small_bundle, sequence, tmp_path):
    found = predict_sequence(load_bundle(small_bundle), sequence, tmp_path / "out")
    assert found.failed == {}
    assert (tmp_path / "out" / "depth.txt").read_text().splitlines()[1] == "1000.000000 depth/1000.000000.png"
    assert found.timings["frames"] == FRAMES
    with Runtime.load(small_bundle) as runtime:
        for moment in sequence.moments:
            expected = runtime(read(moment))
            depth, labels = found.read(moment)
            assert np.abs(depth - expected.depth).max() <= 0.51 / DEPTH_SCALE
            assert (labels == expected.semantics + 1).all()


def test_predictions_with_the_images_are_a_sequence(nyu_bundle, room, tmp_path):
    sequence = open_sequence(room)
    found = predict_sequence(load_bundle(nyu_bundle), sequence, tmp_path / "out", limit=3)
    shutil.copytree(room / "rgb", tmp_path / "out" / "rgb")
    shutil.copyfile(room / "rgb.txt", tmp_path / "out" / "rgb.txt")
    again = open_sequence(tmp_path / "out")
    assert (again.intrinsics, again.size) == (sequence.intrinsics, sequence.size)
    for index, moment in enumerate(sequence.moments[:3]):
        frame = again[index]
        depth, labels = found.read(moment)
        assert np.abs(frame.pose - moment.pose).max() < 1e-6
        assert np.abs(frame.depth - depth).max() < 1e-6
        assert (frame.semantics == labels - np.uint8(1)).all()


def test_labels_of_a_network_with_unknown_are_stored_without_it(small_bundle):
    classes = load_bundle(small_bundle).manifest.classes
    labels = np.array([[0, 1, 3]], np.uint8)
    assert stored_labels(labels, classes).tolist() == [[1, 2, 4]]
    unknown = classes.model_copy(update={"names": ("unknown", *classes.names[1:])})
    assert stored_labels(labels, unknown).tolist() == [[0, 1, 3]]


def test_a_run_that_was_stopped_predicts_only_what_is_missing(small_bundle, sequence, tmp_path, monkeypatch):
    bundle = load_bundle(small_bundle)
    whole = predict_sequence(bundle, sequence, tmp_path / "whole")
    calls: list[str] = []
    real = predictions.predict_item

    def stopped(runtime, item, writes):
        calls.append(item.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(runtime, item, writes)

    monkeypatch.setattr(predictions, "predict_item", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict_sequence(bundle, sequence, tmp_path / "out")
    again = predict_sequence(bundle, sequence, tmp_path / "out")
    assert calls == ["0", "1", "2", "2", "3"]
    assert again.again == 2
    assert content(again.folder) == content(whole.folder)
    last = predict_sequence(bundle, sequence, tmp_path / "out")
    assert (last.again, len(calls)) == (FRAMES, 5)
    assert last.timings == again.timings
    (tmp_path / "out" / "depth" / "1000.100000.png").unlink()
    predict_sequence(bundle, sequence, tmp_path / "out")
    assert calls[5:] == ["1"]


def test_the_frames_of_a_limit_are_kept_when_the_rest_is_predicted(small_bundle, sequence, tmp_path):
    bundle = load_bundle(small_bundle)
    assert predict_sequence(bundle, sequence, tmp_path / "out", limit=3).again == 0
    assert predict_sequence(bundle, sequence, tmp_path / "out").again == 3


def test_predictions_of_another_bundle_or_sequence_are_made_again(small_bundle, sequence, tmp_path):
    bundle = load_bundle(small_bundle)
    predict_sequence(bundle, sequence, tmp_path / "out")
    first = content(tmp_path / "out")
    said: list[str] = []
    cv2.imwrite(str(sequence.moments[2].files[0]), np.zeros((24, 32, 3), np.uint8))
    assert predict_sequence(bundle, sequence, tmp_path / "out", say=said.append).again == 0
    assert content(tmp_path / "out") != first
    near = load_bundle(changed(small_bundle, tmp_path / "near", depth_range=(0.5, 0.6)))
    shorter = replace(sequence, moments=sequence.moments[:2])
    found = predict_sequence(near, shorter, tmp_path / "out", say=said.append)
    assert len(content(tmp_path / "out")) == 4
    assert found.read(sequence.moments[0])[0].max() <= 0.6001
    assert len(said) == 2
    assert all("made again" in line for line in said)


def test_a_folder_of_something_else_is_not_touched(small_bundle, sequence, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    assert "did not write it" in refused(predict_sequence, load_bundle(small_bundle), sequence, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_frame_that_cannot_be_read_and_one_that_the_engine_fails_on_are_named(
    small_bundle, sequence, tmp_path, monkeypatch
):
    sequence.moments[1].files[0].write_bytes(b"no image")
    real = RuntimeClass.__call__

    def failing(self, image, **options):
        prediction = real(self, image, **options)
        if (image == read(sequence.moments[2])).all():
            return replace(prediction, depth=np.full_like(prediction.depth, np.nan))
        return prediction

    monkeypatch.setattr(RuntimeClass, "__call__", failing)
    found = predict_sequence(load_bundle(small_bundle), sequence, tmp_path / "out")
    assert (list(found.unread), list(found.failed)) == (["1"], ["2"])
    assert "1.png" in found.unread["1"]
    assert "NaN or infinity" in found.failed["2"]
    assert [moment in found for moment in sequence.moments] == [True, False, False, True]
    assert "1000.100000" not in (tmp_path / "out" / "depth.txt").read_text()


def test_no_result_at_all_is_one_line(small_bundle, sequence, tmp_path):
    for moment in sequence.moments:
        moment.files[0].unlink()
    said = refused(predict_sequence, load_bundle(small_bundle), sequence, tmp_path / "out")
    assert "no frame of" in said


def test_another_number_of_threads_is_another_run(small_bundle, sequence, tmp_path):
    bundle = load_bundle(small_bundle)
    predict_sequence(bundle, sequence, tmp_path / "out", options=BackendOptions(threads=1))
    assert predict_sequence(bundle, sequence, tmp_path / "out", options=BackendOptions(threads=2)).again == 0
    recorded = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert recorded["options"]["threads"] == 2
