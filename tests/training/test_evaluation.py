"""Test the evaluation on labeled frames: the metrics, their table and the command that prints them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.model import TASKS, build_model
from m2h_deploy.training import evaluate, evaluate_checkpoint, table
from tests.commands import environment, m2h, mistake

ROOT = Path(__file__).parents[2]
CONFIG = """
[validation]
count = 3
seed = 9
height = 56
width = 70
"""


def test_evaluation_reports_every_task_and_leaves_the_model_as_it_was() -> None:
    model = build_model("m2h-tiny", channels=16, head_channels=(8, 8)).train()
    result = evaluate(model, Rooms(3, 9, 28, 42), batch_size=2)
    assert result["frames"] == 3 and model.training
    assert set(result) == {"frames", *TASKS}
    text = table(result)
    for heading in ("mIoU", "RMSE", "abs rel", "mean error", "odsF"):
        assert heading in text


def test_evaluation_does_not_depend_on_the_batch_size() -> None:
    model = build_model("m2h-tiny", channels=16, head_channels=(8, 8))
    one, two = (evaluate(model, Rooms(3, 9, 28, 42), batch_size=size) for size in (1, 3))
    assert one["depth"]["rmse"] == pytest.approx(two["depth"]["rmse"], rel=1e-4)
    assert one["semantics"]["miou"] == pytest.approx(two["semantics"]["miou"], abs=1e-3)


def test_an_evaluation_without_frames_is_an_error() -> None:
    with pytest.raises(M2HError, match="no frames"):
        evaluate(build_model("m2h-tiny", channels=16, head_channels=(8, 8)), [])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(CONFIG)
    return file


def test_the_command_prints_its_figures_as_json_and_leaves_no_temporary_file(config: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ran = m2h("evaluate", "m2h-tiny", config, "--json", env=environment(TMPDIR=str(temporary)))
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["frames"] == 3 and set(result) == {"frames", *TASKS}
    assert list(temporary.iterdir()) == []


def test_the_figures_are_those_of_the_validation_frames(config: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    one, two = (evaluate_checkpoint("m2h-tiny", config, cache=kept, device="cpu") for _ in range(2))
    assert one == two
    assert len(list(kept.iterdir())) == 1

    other = config.with_name("other.toml")
    other.write_text('preset = "imagenet"\n' + config.read_text())
    assert evaluate_checkpoint("m2h-tiny", other, cache=kept, device="cpu")["depth"] != one["depth"]


def test_a_file_in_place_of_the_frames_folder_is_named(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(M2HError, match="cannot keep frames in"):
        evaluate_checkpoint("m2h-tiny", config, cache=tmp_path / "file")


def test_the_pages_show_the_same_figures_of_the_shipped_weights() -> None:
    pages = [ROOT / "docs" / "training.md", ROOT / "m2h_deploy" / "assets" / "m2h-tiny.md"]
    tables = [re.findall(r"^\| metric \| value \|\n(?:\|.*\n)+", page.read_text(), re.M) for page in pages]
    assert tables[0] == tables[1] and len(tables[0]) == 1
    assert "| frames | 200 |" in tables[0][0]


def test_an_onnx_file_in_place_of_a_checkpoint_is_recognized(config: Path, tiny_onnx: Path) -> None:
    assert "is an ONNX file: give the checkpoint" in mistake("evaluate", tiny_onnx, config)


def test_progress_reports_the_number_of_frames(config: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None, str]] = []
    evaluate_checkpoint("m2h-tiny", config, device="cpu", cache=tmp_path, progress=lambda *step: told.append(step))
    assert told[:3] == [("frames of rooms 9", done, 3, "") for done in (1, 2, 3)]
    assert told[3:] == [("evaluation", 3, 3, "")]
