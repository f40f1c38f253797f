"""Test that `bench` measures bundles interleaved, saves its results, and reports mistakes before the first run."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from m2h_deploy import M2HError
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.errors import install_extra
from m2h_deploy.profiling import BenchSettings, bench, to_json, write_csv
from m2h_deploy.profiling.measure import Subject, Timer, interleave, subject_of
from m2h_deploy.profiling.report import words
from m2h_deploy.profiling.report.page import write_page
from m2h_deploy.profiling.report.table import print_bench
from m2h_deploy.profiling.result import latency_record
from m2h_deploy.profiling.warnings import find_warnings
from tests.commands import m2h_text, mistake

QUICK = {"height": 96, "width": 128, "threads": 1, "duration_s": 0.2, "min_rounds": 5}


@pytest.fixture(scope="module")
def result(tiny_bundle):
    settings = BenchSettings(**QUICK, camera_rate=50, policies=("latest", "queue"), deadline_ms=1.0)

    def device(runtime) -> list[Subject]:
        """A runtime whose engine also measures its own time, as on a GPU."""
        ours = subject_of(runtime, "events", peer=True)
        return [dataclasses.replace(ours, on_device=lambda runs: [float(run) for run in range(1, runs + 1)])]

    return bench([tiny_bundle, tiny_bundle], settings, peers=device)


def test_the_engines_own_time_is_kept_if_the_device_measures_it(result):
    assert [subject.on_device is None for subject in result.subjects] == [True, True, False]
    assert result.subjects[2].on_device.count == len(result.subjects[2].samples.total)
    assert result.subjects[2].on_device.least == 1.0


def test_peers_are_compared_but_have_no_camera_and_no_layers(result):
    assert [subject.peer for subject in result.subjects] == [False, False, True]
    assert [ratio.subject for ratio in result.ratios] == ["tiny (2)", "events"]
    assert "events" not in {camera.subject for camera in result.cameras}
    assert "events" not in {profile.subject for profile in result.layers}


def test_a_frames_time_is_the_sum_of_its_stages_and_the_gaps_between(result):
    for subject in result.subjects:
        samples = subject.samples
        assert len(samples.total) >= 5
        stages = np.sum([samples.stages[name] for name in ("preprocess", "inference", "postprocess")], axis=0)
        assert (stages <= samples.total).all()
        assert samples.started == sorted(samples.started)


def test_bundles_are_measured_in_the_same_rounds_and_compared_with_the_first(result):
    first, second, _ = result.subjects
    assert (first.name, second.name) == ("tiny", "tiny (2)")
    assert len(first.samples.total) == len(second.samples.total)
    ratio = result.ratios[0]
    assert (ratio.subject, ratio.baseline) == ("tiny (2)", "tiny")
    assert ratio.total.value in {a / b for a, b in zip(first.samples.total, second.samples.total, strict=True)}


def test_each_round_begins_with_another_subject():
    order = []

    def subject(name: str) -> Subject:
        def run(image) -> dict[str, float]:
            order.append(name)
            return {"inference": 1.0}

        return Subject(name, "", run)

    samples = interleave(
        list(map(subject, "abc")), Timer([np.zeros((16, 16, 3), np.uint8)]), duration_s=0, min_rounds=3
    )
    assert "".join(order) == "abcbcacab"
    assert {name: len(found.total) for name, found in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_every_frame_of_a_camera_is_answered_or_dropped(result):
    assert [(camera.subject, camera.run.camera.policy) for camera in result.cameras] == [
        ("tiny", "latest"),
        ("tiny (2)", "latest"),
        ("tiny", "queue"),
        ("tiny (2)", "queue"),
    ]
    for camera in result.cameras:
        run = camera.run
        assert run.camera.frames == 10
        assert len(run.deliveries) + len(run.dropped) == 10
        assert len(camera.samples.total) == len(run.deliveries)


def test_layers_are_reported_with_their_time(result):
    assert [profile.subject for profile in result.layers] == ["tiny", "tiny (2)"]
    blocks = {block.block: block for block in result.layers[0].blocks}
    assert blocks["backbone"].of_roofline > 0
    assert blocks["wmca"].macs > 0


def test_json_is_valid_and_keeps_no_single_samples(result):
    text = json.dumps(to_json(result), allow_nan=False)
    values = json.loads(text)
    assert values["subjects"][0]["summary"]["total"]["p50"]["value"] > 0
    assert values["cameras"][0]["delivered"] + values["cameras"][0]["dropped"] == 10
    assert "samples" not in values["subjects"][0]


def test_csv_has_every_sample_and_every_dropped_frame(result, tmp_path):
    with write_csv(result, tmp_path / "samples.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    closed = [row for row in rows if row["measurement"] == "closed loop" and row["subject"] == "tiny"]
    assert [float(row["total_ms"]) for row in closed] == pytest.approx(result.subjects[0].samples.total, abs=1e-4)
    camera = [row for row in rows if row["measurement"] == "camera latest 50" and row["subject"] == "tiny"]
    assert sorted(int(row["frame"]) for row in camera) == list(range(10))
    assert sum(row["dropped"] == "1" for row in camera) == len(result.cameras[0].run.dropped)


def test_the_page_needs_no_other_file_and_names_everything(result, tmp_path):
    page = write_page(result, tmp_path / "page.html").read_text()
    assert page.count("<svg") == page.count("</svg>") >= 8
    assert "http" not in page and "src=" not in page and "<script" not in page
    for text in ("tiny (2)", "backbone", "Behind a camera", "heads.depth"):
        assert text in page


def test_the_page_and_the_terminal_have_the_same_columns(result, tmp_path):
    stream = io.StringIO()
    print_bench(result, Console(file=stream, width=200))
    page = write_page(result, tmp_path / "page.html").read_text()
    tables = (words.LATENCY_COLUMNS, words.RATIO_COLUMNS, words.CAMERA_COLUMNS, words.BLOCK_COLUMNS)
    for column in {name for columns in (*tables, words.MACHINE_COLUMNS) for name in columns}:
        assert f">{column}</th>" in page
        assert column in stream.getvalue()


def test_no_table_of_a_page_is_wider_than_the_page(result, tmp_path):
    """Cells wrap without scrolling; on a narrow screen each cell is beside the name of its column."""
    page = write_page(result, tmp_path / "page.html").read_text()
    style = page[page.index("<style>") : page.index("</style>")]
    for rule in re.findall(r"([^{}]*)\{([^{}]*)\}", style):
        if re.search(r"\b(table|tr|td|th|card)\b", rule[0]):
            assert not re.search(r"nowrap|min-width: \d{3}px|overflow-x", rule[1]), rule
    assert page.count("<td ") == page.count("<td data-name=") > 50
    assert "<td>" not in page
    assert "content: attr(data-name)" in style


def test_a_share_above_the_roofline_is_shown_without_a_figure(result, tmp_path):
    profile = result.layers[0]  # on a busy machine the others may be above the roofline, too
    blocks = tuple(
        dataclasses.replace(block, of_roofline=3.67 if block.block == "backbone" else None) for block in profile.blocks
    )
    changed = dataclasses.replace(result, layers=(dataclasses.replace(profile, blocks=blocks),), warnings=())
    (row,) = (words.block_cells(block) for block in blocks if block.block == "backbone")
    assert row[-1] == "> 100 %"
    assert "367" not in "".join(row)
    (warning,) = (text for text in find_warnings(changed).warnings if "roofline in" in text)
    assert warning.startswith("> 100 % of the roofline in backbone: other work ran while the roof was measured")
    assert "> 100 %" not in words.block_cells(dataclasses.replace(blocks[0], of_roofline=1.0))


def test_a_record_names_machine_engine_and_times(result):
    record = latency_record(result, "tiny (2)")
    assert record["machine"]["cpu"] == result.machine.cpu
    assert record["milliseconds"]["total"]["p50"]["value"] == result.subjects[1].summary["total"].p50.value
    assert {camera["subject"] for camera in record["cameras"]} == {"tiny (2)"}
    assert record["threads"] == 1


def test_too_few_runs_are_warned_of(result):
    assert any("too few" in warning for warning in result.warnings)


@pytest.fixture
def copy(tiny_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_the_command_measures_records_and_writes_its_files(copy, tmp_path):
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "html")}
    options = ["--duration", 0.2, "--size", "128x96", "--threads", 1, "--no-layers", "--record"]
    ran = m2h_text("bench", copy, *options, "--json", "--csv", files["csv"], "--html", files["html"])
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(ran.stdout)
    recorded = load_bundle(copy).manifest.latency
    assert recorded is not None
    assert recorded["milliseconds"]["total"] == measured["subjects"][0]["summary"]["total"]
    assert all(file.stat().st_size > 0 for file in files.values())


def test_an_unwritable_bundle_is_reported_before_the_first_run(copy, monkeypatch):
    def run(*arguments, **options):
        raise AssertionError("measured")

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copy)
    monkeypatch.setattr(sys.modules["m2h_deploy.profiling.bench"], "interleave", run)
    with pytest.raises(M2HError, match=r"no permission.*--record"):
        bench([copy], BenchSettings(**QUICK), record=True)


def test_bundles_of_two_image_sizes_are_not_compared(tiny_bundle, copy):
    manifest = load_bundle(copy).manifest
    taller = manifest.input.model_copy(update={"height": 224})
    outputs = tuple(
        spec.model_copy(update={"shape": (*spec.shape[:2], 224, spec.shape[3])}) for spec in manifest.outputs
    )
    write_manifest(copy, manifest.model_copy(update={"input": taller, "outputs": outputs}))
    with pytest.raises(M2HError, match=r"140 x 224 and .* 140 x 112: only bundles of one image size"):
        bench([tiny_bundle, copy], BenchSettings(**QUICK))


def test_ctrl_c_leaves_the_bundle_as_it_was(copy, monkeypatch):
    before = (copy / "manifest.json").read_bytes()

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["m2h_deploy.profiling.bench"], "interleave", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench([copy], BenchSettings(**QUICK), record=True)
    assert (copy / "manifest.json").read_bytes() == before
    assert sorted(file.name for file in copy.iterdir()) == ["manifest.json", "model.onnx"]


def test_scenarios_without_loadgen_name_the_extra(tiny_bundle, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    with pytest.raises(M2HError, match=re.escape(install_extra("bench"))):
        bench([tiny_bundle], BenchSettings(**QUICK, scenarios=("offline",)))


def test_mistakes_give_one_line_errors(tiny_bundle, tmp_path):
    assert "is not a bundle" in mistake("bench", tmp_path)
    assert "camera rate 0" in mistake("bench", tiny_bundle, "--camera", 0)
    assert "give --reference" in mistake("bench", tiny_bundle, "--peers")
    assert "there is no folder" in mistake("bench", tiny_bundle, "--csv", tmp_path / "no" / "out.csv")


@pytest.mark.parametrize(
    "options",
    [
        {"duration_s": 0},
        {"duration_s": float("nan")},
        {"height": 8},
        {"scenarios": ("batch",)},
        {"camera_rate": -1.0},
        {"camera_rate": float("inf")},
        {"camera_rate": 30.0, "policies": ("newest",)},
        {"scenarios": ("server",), "qps": 0.0},
    ],
)
def test_invalid_settings_give_a_one_line_error(options):
    with pytest.raises(M2HError) as error:
        BenchSettings(**options)
    assert "\n" not in str(error.value)
