"""What a network is worth on labeled frames: the figures, their table, the command that writes it into a page."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from m2h_deploy.data.rooms.render import Rooms
from m2h_deploy.errors import M2HError
from m2h_deploy.model import TASKS, build_model
from m2h_deploy.training import check_marks, evaluate, evaluate_checkpoint, replace_table, table
from m2h_deploy.training.progress import losses_note, progress_bar

ROOT = Path(__file__).parents[2]
PAGE = """# A page with `<!-- evaluation -->` in its words

<!-- evaluation -->
what stood here
<!-- end of evaluation -->

After it.
"""
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


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(M2HError, match="no frames"):
        evaluate(build_model("m2h-tiny", channels=16, head_channels=(8, 8)), [])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(CONFIG)
    return file


def command(*arguments: object, temporary: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "import cli; cli.main()", "evaluate", *map(str, arguments)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


def test_the_command_writes_its_figures_as_json_and_into_the_page(config: Path, tmp_path: Path) -> None:
    page, temporary = tmp_path / "PAGE.md", tmp_path / "temporary"
    page.write_text(PAGE)
    temporary.mkdir()
    ran = command("m2h-tiny", config, "--table", page, "--json", temporary=temporary)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["frames"] == 3 and set(result) == {"frames", *TASKS}
    head, tail = PAGE.split("what stood here\n")
    assert page.read_text() == f"{head}{table(result)}\n{tail}"
    assert list(temporary.iterdir()) == []


def test_the_figures_are_those_of_the_validation_frames(config: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    one, two = (evaluate_checkpoint("m2h-tiny", config, cache=kept, device="cpu") for _ in range(2))
    assert one == two
    assert len(list(kept.iterdir())) == 1

    other = config.with_name("other.toml")
    other.write_text('preset = "imagenet"\n' + config.read_text())
    assert evaluate_checkpoint("m2h-tiny", other, cache=kept, device="cpu")["depth"] != one["depth"]


@pytest.mark.parametrize(
    "text",
    [
        "no marks\n",
        "<!-- evaluation -->\nno end\n",
        "<!-- end of evaluation -->\n<!-- evaluation -->\n",
        PAGE + PAGE,
    ],
    ids=["none", "no end", "other way round", "two places"],
)
def test_a_page_without_one_place_for_the_table_is_refused_and_kept(text: str, config: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    # The page is looked at before the network: that is not there.
    ran = command(tmp_path / "no.safetensors", config, "--table", page, temporary=tmp_path)
    assert ran.returncode == 2
    assert "has no place for the table" in ran.stderr and "Traceback" not in ran.stderr
    assert page.read_text() == text


def test_a_page_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(M2HError, match=r"cannot read .*missing\.md"):
        check_marks(tmp_path / "missing.md")
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    with pytest.raises(M2HError, match="not UTF-8"):
        replace_table(tmp_path / "latin.md", {})


def test_a_place_for_frames_that_is_a_file_is_named(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(M2HError, match="cannot keep frames in"):
        evaluate_checkpoint("m2h-tiny", config, cache=tmp_path / "file")


def test_the_pages_show_the_same_figures_of_the_shipped_weights() -> None:
    pages = [ROOT / "docs" / "training.md", ROOT / "m2h_deploy" / "assets" / "m2h-tiny.md"]
    tables = [re.findall(r"<!-- evaluation -->\n(.*?)<!-- end of evaluation -->", p.read_text(), re.S) for p in pages]
    assert tables[0] == tables[1] and len(tables[0]) == 1
    for page in pages:
        check_marks(page)
    assert "| frames | 200 |" in tables[0][0]


def test_an_onnx_file_is_no_checkpoint_and_is_called_what_it_is(config: Path, tiny_onnx: Path, tmp_path: Path) -> None:
    ran = command(tiny_onnx, config, temporary=tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1 and "is an ONNX file: give the checkpoint" in ran.stderr


def test_progress_knows_how_many_frames_there_are(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2h_deploy.training import evaluation

    stream = io.StringIO()
    bar = progress_bar(Console(file=stream, width=80, force_terminal=True))
    monkeypatch.setattr(evaluation, "progress_bar", lambda: bar)
    evaluate_checkpoint("m2h-tiny", config, device="cpu", cache=tmp_path)
    assert "3/3" in stream.getvalue() and "/?" not in stream.getvalue()


def test_the_training_line_is_whole_in_80_columns() -> None:
    stream = io.StringIO()
    losses = {"depth": 12.345, "semantics": 1.234, "normals": 0.123, "edges": 0.012}
    with progress_bar(Console(file=stream, width=80, force_terminal=True)) as bar:
        task = bar.add_task("fine-tuning", total=12000, note="")
        bar.update(task, completed=10000, note=losses_note(losses))
        bar.refresh()
    shown = stream.getvalue()
    for name, value in losses.items():
        assert f"{name}\N{NO-BREAK SPACE}{value:.3f}" in shown
    assert "fine-tuning" in shown and "10000/12000" in shown and "…" not in shown
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80


def test_a_count_without_an_end_has_no_question_mark() -> None:
    stream = io.StringIO()
    with progress_bar(Console(file=stream, width=80, force_terminal=True)) as bar:
        bar.update(bar.add_task("evaluation", total=None, note=""), completed=8)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert " 8 " in shown and "?" not in shown
