"""Tune a small network for real: every CPU engine here, kill and resume, the same policy again, bad input."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import engines.tune.tune
from engines.precision.quantization import load_policy
from engines.speed import measure_speed
from engines.tune.candidates import Candidate, candidates_here, thread_counts
from engines.tune.frames import Counts, divide
from engines.tune.page import worst_share
from engines.tune.result import Row
from engines.tune.tune import TuneSettings, tune, work_folder
from m2h_deploy import Runtime
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.parity import Gates
from tests.commands import mistake, refused, run_here
from tests.data.sequence_folders import write_tum
from tests.engines.graphs import SIDE, small_graph

#: The network has random weights, so that its labels are near ties everywhere.
GATES = Gates(miou_drop=None, rmse_increase=20, psnr=15)
COUNTS = Counts(calibration=6, search=2, check=8)
SETTINGS = TuneSettings(("onnxruntime",), COUNTS, gates=GATES)


@pytest.fixture(autouse=True, scope="module")
def _tools():
    """Skip without the tools, and measure times as briefly as possible: no test here depends on them."""
    for module in ("modelopt.onnx.quantization", "nncf", "openvino", "jinja2", "matplotlib"):
        pytest.importorskip(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines.tune.tune, "measure_speed", partial(measure_speed, seconds=0.0))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "small.onnx"
    onnx.save(small_graph(scale=0.3), path)
    return path


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:02}.png"), rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", 18)


@pytest.fixture(scope="module")
def tuned(source, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("tuned") / "best"
    return tune(source, pictures, out, SETTINGS), out


@pytest.mark.slow
def test_every_engine_and_precision_of_this_machine_is_measured_and_the_fastest_that_passes_wins(
    source, pictures, tmp_path
):
    result = tune(source, pictures, tmp_path / "best", TuneSettings(counts=COUNTS, gates=GATES))
    names = [row.name for row in result.rows]
    assert {"onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-int8-f32"} <= set(names)
    held = [row for row in result.rows if row.passed]
    assert result.winner is max(held, key=lambda row: row.ratio)
    for row in result.rows:
        if row.obstacle is None:
            assert [speed["threads"] for speed in row.speeds] == list(thread_counts(row.engine))
            assert row.gates.keys() >= {"depth.rmse_increase", "depth.psnr", "semantics.psnr"}
            assert row.mark in "✓✗?"
    assert result.baseline.startswith(("onnxruntime-fp32 with", "openvino-fp32 with"))
    assert result.frames == 8


def test_the_winner_is_a_bundle_that_runs_and_holds_the_table(tuned):
    result, out = tuned
    manifest = load_bundle(out).manifest
    assert result.winner is not None
    assert manifest.engine.kind == result.winner.engine
    assert manifest.engine.options["threads"] == result.winner.threads
    assert manifest.tuning["winner"] == result.winner.name
    assert [row["name"] for row in manifest.tuning["rows"]] == [row.name for row in result.rows]
    assert manifest.parity["passed"]
    with Runtime.load(out) as runtime:
        assert runtime(np.zeros((20, 20, 3), np.uint8)).depth.shape == (20, 20)


def test_the_policy_file_is_what_build_takes_and_the_page_shows_both_pictures(tuned):
    result, out = tuned
    policy = load_policy(work_folder(out) / "policy-uint8.json")
    assert list(policy.quantize) == result.searches["uint8"]["policy"]["quantize"]
    page = (work_folder(out) / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert all(row.name in page for row in result.rows)
    assert all(step["losses"].keys() >= {"depth.psnr"} for step in result.searches["uint8"]["steps"])


def test_a_second_run_measures_nothing_again(tuned, source, pictures, monkeypatch):
    result, out = tuned
    before = (work_folder(out) / "journal.jsonl").read_text()

    def work(*arguments, **options):
        raise AssertionError("measured again")

    for name in ("build_bundle", "measure_speed", "verify"):
        monkeypatch.setattr(engines.tune.tune, name, work)
    again = tune(source, pictures, out, SETTINGS)
    assert [row.name for row in again.rows] == [row.name for row in result.rows]
    assert again.rows == result.rows
    assert (work_folder(out) / "journal.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_that_was_killed_is_resumed_and_finds_the_same_policy(tuned, source, pictures, tmp_path, monkeypatch):
    result, _ = tuned
    real, calls = engines.tune.tune.verify, []

    def killed(bundle, *arguments, **options):
        calls.append(Path(bundle).name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(bundle, *arguments, **options)

    monkeypatch.setattr(engines.tune.tune, "verify", killed)
    out = tmp_path / "best"
    with pytest.raises(KeyboardInterrupt):
        tune(source, pictures, out, SETTINGS)
    assert not out.exists()
    kept = (work_folder(out) / "journal.jsonl").read_text().splitlines()
    again = tune(source, pictures, out, SETTINGS)
    assert (work_folder(out) / "journal.jsonl").read_text().splitlines()[: len(kept)] == kept
    assert len(calls) == len(set(calls)) + 1  # only the one that was stopped is judged twice
    assert again.searches["uint8"]["policy"] == result.searches["uint8"]["policy"]
    assert [row.name for row in again.rows][:4] == [row.name for row in result.rows][:4]


def test_a_budget_ends_the_tuning_with_the_best_so_far(source, pictures, tmp_path, monkeypatch):
    clock = iter(range(0, 10_000_000, 20))  # every look at the clock takes 20 seconds
    monkeypatch.setattr(engines.tune.tune.time, "monotonic", lambda: next(clock))
    result = tune(source, pictures, tmp_path / "best", replace(SETTINGS, budget_minutes=2.0))
    assert [row.obstacle for row in result.rows] == [None, "the budget was used up"]
    assert result.winner.name == "onnxruntime-fp32"


def test_without_a_candidate_that_passes_the_gates_there_is_a_table_and_no_bundle(source, pictures, tmp_path):
    out = tmp_path / "best"
    counts = ("--calibration-frames", 6, "--search-frames", 2, "--check-frames", 8)
    done = run_here("tune", source, "--data", pictures, "-o", out, "--engine", "onnxruntime", "--psnr", 500, *counts)
    assert isinstance(done.exception, CheckFailed)
    assert "onnxruntime-fp32" in done.stdout
    assert not out.exists()
    assert json.loads((work_folder(out) / "tune.json").read_text())["winner"] is None


@pytest.mark.slow
def test_a_candidate_that_cannot_be_built_is_skipped(source, pictures, tmp_path, monkeypatch):
    real = engines.tune.tune.build_bundle

    def broken(*arguments, precision, **options):
        if precision == "int8":
            raise M2HError("wrong numbers")
        return real(*arguments, precision=precision, **options)

    monkeypatch.setattr(engines.tune.tune, "build_bundle", broken)
    result = tune(source, pictures, tmp_path / "best", SETTINGS)
    assert [row.obstacle for row in result.rows] == [None, "wrong numbers"]
    assert "wrong numbers" in (work_folder(tmp_path / "best") / "index.html").read_text()


def test_openvino_in_bfloat16_that_fails_is_tried_with_the_failed_heads_in_float32():
    run = object.__new__(engines.tune.tune._Tuning)
    candidate = Candidate("openvino", "fp16", {"hint": "bf16"}, "bf16")
    gate = {"name": "edges.psnr", "task": "edges", "verdict": "fail", "value": 27.0, "limit": 30.0, "unit": "dB"}
    row = Row(candidate.name, "openvino", "fp16", parity={"passed": False, "gates": [gate]})
    (variant,) = run._variants(candidate, row)
    assert variant.options == {"hint": "bf16", "float32": ("heads.edges",)}
    assert variant.name == "openvino-fp16-bf16-edges-f32"
    assert run._variants(variant, row) == []
    assert worst_share(row) == pytest.approx(10**0.3)


def test_pictures_are_divided_and_no_frame_is_both_calibrated_and_judged_on(pictures):
    frames = divide(pictures, Counts(calibration=5, search=2, check=8), seed=3)
    assert (frames.count, len(frames.search), len(frames.check)) == (5, 2, 8)
    judged = set(frames.check.indices)
    assert not judged & set(frames.search.indices)
    calibrated = {image.tobytes() for image in frames.calibration.read()}
    assert not calibrated & {frame.image.tobytes() for frame in frames.check}
    assert divide(pictures, Counts(), seed=3).check.indices == divide(pictures, Counts(), seed=3).check.indices
    assert divide(pictures, Counts(), seed=3).check.indices != divide(pictures, Counts(), seed=4).check.indices


def test_a_sequence_is_divided_in_two_parts_because_its_neighbors_are_alike(tmp_path):
    frames = divide(write_tum(tmp_path, 15), Counts(calibration=4, search=2), seed=3)
    assert frames.check.indices == tuple(range(10)) and min(frames.search.indices) >= 10
    judged = {frame.image.tobytes() for frame in frames.check}
    assert frames.count == 4 and not judged & {image.tobytes() for image in frames.calibration.read()}


def test_what_cannot_be_tuned_is_one_line(source, pictures, tuned, tmp_path):
    out = tmp_path / "best"
    assert "no such file" in refused(tune, source, tmp_path / "nowhere", out)
    one = write_pictures(tmp_path / "one", 1)
    assert "has 1 frame: at least 9" in refused(tune, source, one, out)
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(12):
        cv2.imwrite(str(flat / f"{index}.png"), np.full((SIDE, SIDE, 3), 9 * index, np.uint8))
    assert "one color" in refused(tune, source, flat, out, SETTINGS)
    assert "choose one of" in refused(candidates_here, ("tflite",))
    assert "does not run here" in refused(candidates_here, ("tensorrt-rtx",))
    assert "budget 0 minutes" in refused(TuneSettings, budget_minutes=0.0)
    onnx.save(small_graph(batch=2), tmp_path / "two.onnx")
    assert "takes 2 frames at once" in refused(tune, tmp_path / "two.onnx", pictures, out)
    quantized = next(work_folder(tuned[1]).glob("onnxruntime-int8-*")) / "model.onnx"
    lowered = tmp_path / "int8.onnx"
    shutil.copyfile(quantized, lowered)
    assert "int8" in refused(tune, lowered, pictures, out)
    assert not out.exists()
    assert "no such file" in mistake("tune", source, "--data", tmp_path / "nowhere", "-o", out)
