"""Test that a correct engine passes and a damaged one fails, and that the manifest changes only with a result."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.metrics.bootstrap import draws
from m2h_deploy.model import save_checkpoint
from m2h_deploy.parity import Gates, locate_in_bundle, to_json, verify
from m2h_deploy.parity.reference import open_reference
from m2h_deploy.parity.tasks import TaskComparison
from m2h_deploy.parity.verify import name_of
from m2h_deploy.runtime.postprocess import Prediction
from tests.data.sequence_folders import write_tum

ROOMS = Rooms(2, height=64, width=80)


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@dataclasses.dataclass(frozen=True)
class Unlabeled:
    """Rooms as images without labels."""

    rooms: Rooms = ROOMS
    class_names: tuple[str, ...] = ()
    derived: frozenset[str] = frozenset()

    def __len__(self):
        return len(self.rooms)

    def __getitem__(self, index):
        frame = self.rooms[index]
        return dataclasses.replace(frame, depth=None, normals=None, semantics=None, edges=None)


def good(result) -> bool:
    """Check that every gate passed except that on the number of frames, which few frames never pass."""
    return {gate.name for gate in result.gates if gate.verdict != "pass"} == {"frames"} and not result.passed


def test_two_frames_of_a_good_engine_are_recorded_as_inconclusive(bundle, tiny_checkpoint):
    seen = []
    result = verify(bundle, tiny_checkpoint, ROOMS, record=True, progress=lambda *done: seen.append(done))
    assert good(result), result.summary
    assert seen == [(1, 2), (2, 2)]
    assert [task.against for task in result.tasks] == ["labels"] * 4
    for task in result.tasks:
        assert abs(task.worse_by) < 1e-2 or np.isnan(task.worse_by)
    headlines = {"depth": ("rmse", 1), "semantics": ("miou", None), "normals": ("mean", 1), "edges": ("odsF", 100)}
    for task in result.tasks:
        figure, scale = headlines[task.task]
        if scale is not None:  # mIoU of few frames is over the classes that occur
            assert task.engine == pytest.approx(scale * task.engine_figures[figure])
    recorded = load_bundle(bundle).manifest.parity
    assert set(recorded) == {
        "tool", "schema_version", "verdict", "passed", "bundle", "precision", "reference", "engine", "data", "tensors",
        "tasks", "limits", "gates",
    }  # fmt: skip
    assert recorded == json.loads(json.dumps(to_json(result)))
    assert (recorded["passed"], recorded["verdict"]) == (False, "unsure")
    assert recorded["engine"]["weights_sha256"] == load_bundle(bundle).manifest.model.weights_sha256


def test_without_labels_the_reference_replaces_them(bundle, tiny_onnx):
    result = verify(bundle, tiny_onnx, Unlabeled(), record=True)
    assert good(result), result.summary
    assert [task.against for task in result.tasks] == ["reference"] * 4
    values = {task.task: task.engine for task in result.tasks}
    assert values["depth"] == pytest.approx(0, abs=1e-3)
    assert values["semantics"] == pytest.approx(100, abs=0.1)
    assert values["normals"] == pytest.approx(0, abs=1e-2)
    assert values["edges"] == pytest.approx(100, abs=0.5)
    assert [task.reference for task in result.tasks] == [None] * 4
    recorded = load_bundle(bundle).manifest.parity
    assert [(task["reference"], task["reference_figures"]) for task in recorded["tasks"]] == [(None, None)] * 4


@pytest.mark.parametrize("strength", [1.0, 0.3, 1e-3])
def test_edges_equal_to_the_references_agree_completely(tiny_bundle, strength):
    """At any edge strength, the agreement with the reference's own boundaries is 100 %, not 65 %."""
    grid = np.hypot(*np.mgrid[-30:30, -40:40]).astype(np.float32)
    edges = (strength * np.exp(-((grid - 18) ** 2) / 4)).astype(np.float32)
    same, moved, gone = (Prediction(None, None, None, e) for e in (edges, np.roll(edges, 12, 1), np.zeros_like(edges)))
    frame = Unlabeled()[0]
    agreement = {}
    for name, engine in {"same": same, "moved": moved, "gone": gone}.items():
        comparison = TaskComparison("edges", "reference", load_bundle(tiny_bundle).manifest.classes)
        comparison.add(comparison.states(frame, same, engine))
        result, _ = comparison.result(draws(1, 2), Gates())
        agreement[name] = result.engine
        assert result.reference is None
        assert result.worse_by == pytest.approx(100 - result.engine)
    assert agreement["same"] == 100
    assert 0 < agreement["moved"] < 50
    assert agreement["gone"] == 0


def test_a_loss_is_positive_in_the_table_and_in_the_gate(bad_head, tiny_onnx):
    """mIoU drops and RMSE does not: both columns are positive for a loss."""
    result = verify(bad_head, tiny_onnx, ROOMS)
    semantics = next(task for task in result.tasks if task.task == "semantics")
    gate = next(gate for gate in result.gates if gate.name == "semantics.miou_drop")
    assert semantics.worse_by == pytest.approx(semantics.reference - semantics.engine)
    assert gate.value == semantics.worse_by
    assert gate.interval == semantics.interval
    assert semantics.interval[0] <= semantics.worse_by <= semantics.interval[1]


def test_every_figure_of_the_json_has_its_unit(tiny_bundle, tiny_onnx):
    result = json.loads(json.dumps(to_json(verify(tiny_bundle, tiny_onnx, ROOMS))))
    assert set(result["limits"]) == {
        "miou_drop_points", "rmse_increase_percent", "merr_increase_degrees", "odsf_drop_points", "psnr_db",
    }  # fmt: skip
    units = {tensor["output"]: tensor["unit"] for tensor in result["tensors"]}
    expected = {"depth": "m", "semantics": "logit", "normals": "unit vector", "edges": "logit"}
    assert units == expected
    for tensor in result["tensors"]:
        assert {"psnr_db", "psnr_interval_db", "label_agreement_share"} < set(tensor)
    for task in result["tasks"]:
        assert set(task["figure_units"]) == set(task["engine_figures"]) == set(task["reference_figures"])
        assert task["unit"]
    assert all(gate["unit"] for gate in result["gates"] if gate["limit"] is not None)


def test_a_damaged_semantics_head_fails_and_is_named(bad_head, tiny_onnx):
    result = verify(bad_head, tiny_onnx, Unlabeled())
    assert result.verdict == "fail"
    failed = {gate.task for gate in result.gates if gate.verdict != "pass" and gate.task}
    assert failed == {"semantics"}
    assert "semantics" in result.summary
    assert next(t for t in result.tensors if t.output == "semantics").label_agreement < 0.9


def test_an_interrupted_run_leaves_the_bundle_as_it_was(bundle, tiny_onnx):
    before = (bundle / "manifest.json").read_bytes()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(bundle, tiny_onnx, ROOMS, record=True, progress=interrupt)
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(file.name for file in bundle.iterdir()) == ["manifest.json", "model.onnx"]


def test_on_result_is_called_before_and_after_the_block_is_located(bundle, tiny_onnx):
    given = []

    def give(result):
        given.append((result.located, load_bundle(bundle).manifest.parity))

    options = {"limit": 1, "resamples": 2, "record": True}
    located = verify(bundle, tiny_onnx, ROOMS, **options, locate=locate_in_bundle, on_result=give).located
    assert located.block is None
    assert given == [(None, None), (located, None)]
    recorded = load_bundle(bundle).manifest.parity
    assert recorded["data"]["frames"] == 1
    assert "located" not in recorded


def test_results_are_recorded_only_if_requested_and_possible(bundle, tiny_onnx, monkeypatch):
    before = (bundle / "manifest.json").read_bytes()
    verify(bundle, tiny_onnx, ROOMS, limit=1, resamples=2)
    assert (bundle / "manifest.json").read_bytes() == before
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(M2HError, match=r"no permission.*--record"):
        verify(bundle, tiny_onnx, ROOMS, record=True)


def test_gates_can_be_set_and_left_out(tiny_bundle, tiny_onnx):
    gates = Gates(None, None, None, None, psnr=1000.0)
    result = verify(tiny_bundle, tiny_onnx, ROOMS, gates=gates)
    assert {gate.name for gate in result.gates if gate.verdict == "fail"} == {
        "depth.psnr", "semantics.psnr", "normals.psnr", "edges.psnr",
    }  # fmt: skip
    assert not any(gate.name.endswith(("drop", "increase")) for gate in result.gates)


def test_one_frame_is_inconclusive(tiny_bundle, tiny_onnx):
    result = verify(tiny_bundle, tiny_onnx, Unlabeled(), limit=1)
    assert result.verdict == "unsure"
    assert not result.passed
    assert "about 8 frames are likely to be enough (the data has 2)" in result.summary
    assert json.loads(json.dumps(to_json(result), allow_nan=False))["tasks"][0]["interval"] == [None, None]


def test_non_finite_outputs_fail_the_gates_instead_of_raising(tiny_bundle, tiny_onnx, monkeypatch):
    from m2h_deploy.backends.onnxruntime import OnnxRuntimeBackend

    run = OnnxRuntimeBackend.run

    def overflow(self, image):
        outputs = run(self, image)
        outputs["depth"][0, 0, 3, 4] = np.inf
        return outputs

    monkeypatch.setattr(OnnxRuntimeBackend, "run", overflow)
    result = verify(tiny_bundle, tiny_onnx, ROOMS)
    gate = next(gate for gate in result.gates if gate.name == "depth.psnr")
    assert gate.verdict == "fail"
    assert "2 values" in gate.message


def test_other_weights_are_an_error_that_names_both(tiny_bundle, tiny_model, tmp_path):
    import copy

    import torch

    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.heads["depth"].final.bias += 0.5
    checkpoint = save_checkpoint(other, tmp_path / "other.safetensors")
    built = load_bundle(tiny_bundle).manifest.model.weights_sha256
    with pytest.raises(M2HError, match=rf"built from weights {built[:12]}.*other\.safetensors holds"):
        verify(tiny_bundle, checkpoint, ROOMS)
    result = verify(tiny_bundle, checkpoint, ROOMS, allow_other_weights=True, resamples=20)
    assert result.reference.weights_sha256 != result.engine.weights_sha256


def test_an_engine_without_a_task_is_measured_on_the_others(no_edges, tiny_checkpoint):
    result = verify(no_edges, tiny_checkpoint, ROOMS)
    assert good(result), result.summary
    assert [task.task for task in result.tasks] == ["depth", "semantics", "normals"]


def test_a_reference_without_a_task_of_the_engine_is_refused(tiny_bundle, no_edges):
    with pytest.raises(M2HError, match="has no edges, the engine has"):
        verify(tiny_bundle, no_edges.parent / "model.onnx", ROOMS)


def test_frames_are_spread_over_the_data(no_edges, tiny_onnx):
    rooms = Rooms(6, height=32, width=32)
    result = verify(no_edges, tiny_onnx, rooms, limit=2, pictures=2)
    assert (result.data.frames, result.data.of) == (2, 6)
    assert {worst.name[-1] for worst in result.worst} == {"1", "4"}


def test_broken_data_gives_a_one_line_error_that_names_the_file(bundle, tiny_onnx, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    folder = write_multitask_folder(tmp_path / "rooms", Rooms(2, height=32, width=40))
    depth = sorted((folder / "depth").iterdir())[1]
    depth.unlink()
    with pytest.raises(M2HError, match=depth.name) as caught:
        verify(bundle, tiny_onnx, folder)
    assert "\n" not in str(caught.value)
    assert (bundle / "manifest.json").read_bytes() == before


def test_a_reference_of_another_size_is_refused(bundle, tiny_onnx):
    smaller = load_bundle(bundle).manifest.input.model_copy(update={"height": 56})
    with pytest.raises(M2HError, match="takes 112x140 pixels, the engine 56x140"):
        open_reference(tiny_onnx, smaller)


def test_a_reference_of_another_normalization_is_refused(bundle, tiny_onnx):
    other = load_bundle(bundle).manifest.input.model_copy(update={"mean": (0.1, 0.2, 0.3)})
    with pytest.raises(M2HError, match="different normalizations"):
        open_reference(tiny_onnx, other)


def test_a_folder_name_that_is_not_utf8_is_escaped_in_the_name_of_data(tmp_path):
    assert name_of(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")) == "d\\udcff"


def test_real_frames_pass(no_edges, tiny_onnx, shared):
    result = verify(no_edges, tiny_onnx, shared / "nyuv2_frames")
    assert good(result), result.summary
    assert {task.task for task in result.tasks if task.against == "labels"} == {"depth"}


def test_the_frames_of_a_sequence_are_data(tiny_bundle, tiny_onnx, tmp_path, caplog):
    """One image lacks depth: it counts for the other tasks."""
    root = write_tum(tmp_path / "walk")
    depth = root / "depth.txt"
    depth.write_text("\n".join(depth.read_text().splitlines()[:-1]))
    result = verify(tiny_bundle, tiny_onnx, root)
    assert good(result) and (result.data.name, result.data.frames) == ("walk", 4)
    assert {task.task: task.against for task in result.tasks} == {
        "depth": "labels", "semantics": "labels", "normals": "reference", "edges": "reference",
    }  # fmt: skip
    assert all(np.isfinite(task.engine) for task in result.tasks)
    assert "images without depth" in caplog.text
