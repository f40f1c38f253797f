"""Every code block of README, docs/ and examples/ has a language, and is run or says why it is not.

`bash` is run line by line, `sh` is not; `tests/cli/test_first_steps.py` parses both. `text` is output or a drawing.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
import yaml

from cli.app import take_json_file
from m2h_deploy.data.rooms.render import render_room
from tests.commands import done
from tests.pages import REPOSITORY, Block, blocks_of, m2h_commands

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
LANGUAGES = {"bash", "c", "cmake", "cpp", "csv", "dockerfile", "json", "python", "sh", "text", "toml", "xml", "yaml"}

#: Blocks that other tests run, as whole programs or scripts: page and language, the test, and how many blocks it runs.
#: A block that is added to such a page must be run by that test too, or say why it is not run.
ELSEWHERE = {
    ("README.md", "python"): ("tests/cli/test_first_steps.py", 1),
    ("docs/runtime.md", "python"): ("tests/cli/test_first_steps.py", 3),
    ("docs/clusters.md", "bash"): ("tests/cluster/test_clusters_page.py", 3),
    ("docs/cpp.md", "bash"): ("tests/cpp/conftest.py", 4),
    ("docs/cpp.md", "cmake"): ("tests/cpp/conftest.py", 1),
    ("docs/cpp.md", "cpp"): ("tests/cpp/conftest.py", 1),
    ("docs/mapping.md", "python"): ("tests/mapping/test_mapping_page.py", 1),
    ("docs/ros2.md", "bash"): ("tests/ros2/test_ros2_page.py", 2),
    ("docs/serving.md", "bash"): ("tests/serving/test_serving_page.py", 3),
    ("docs/serving.md", "python"): ("tests/serving/test_serving_page.py", 2),
}
HEIGHT, WIDTH = 96, 128


def blocks_to_run(page: Path) -> list[Block]:
    """Return the blocks that this file runs."""
    name = page.relative_to(REPOSITORY).as_posix()
    return [
        block
        for block in blocks_of(page.read_text())
        if block.reason is None and block.language != "text" and (name, block.language) not in ELSEWHERE
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_block_has_a_language_and_commands_that_are_not_run_say_why(page):
    text = page.read_text()
    blocks = blocks_of(text)
    assert 2 * len(blocks) == sum(line.lstrip().startswith("```") for line in text.splitlines())
    reasons = re.findall(r"^<!-- not run: ", text, re.MULTILINE)
    assert len(reasons) == sum(block.reason is not None for block in blocks)
    for block in blocks:
        assert block.language in LANGUAGES, block.text
        assert block.language != "sh" or block.reason, block.text


def test_the_tests_that_run_other_blocks_name_the_page_and_run_all_of_them():
    for (page, language), (test, count) in ELSEWHERE.items():
        blocks = blocks_of((REPOSITORY / page).read_text())
        assert sum(block.language == language and block.reason is None for block in blocks) == count, page
        assert Path(page).name in (REPOSITORY / test).read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_onnx, tiny_bundle) -> Path:
    """Return what the pages' blocks read, small: a graph, a bundle, pictures."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copy(tiny_onnx, folder / "model.onnx")
    shutil.copytree(tiny_bundle, folder / "bundle")
    (folder / "pictures").mkdir()
    for index in range(2):
        cv2.imwrite(str(folder / "pictures" / f"{index}.png"), render_room(2, index, HEIGHT, WIDTH).image)
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_to_run(page)], ids=lambda page: page.relative_to(REPOSITORY).as_posix()
)
def test_the_blocks_of_a_page_work_from_top_to_bottom(page, made, tmp_path, monkeypatch):
    folder = tmp_path / "page"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    names: dict = {"image": cv2.imread("pictures/0.png")}
    for block in blocks_to_run(page):
        if block.language == "bash":
            run_commands(block.text)
        elif block.language == "python":
            exec(block.text, names)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "csv":
            assert all(None not in {*row, *row.values()} for row in csv.DictReader(block.text.splitlines()))
        else:
            pytest.fail(f"{page.name}: no test runs this {block.language} block:\n{block.text}")


def run_commands(script: str) -> None:
    """Run the lines of a shell block, each of which must be an `m2h-deploy` command."""
    commands = m2h_commands(script)
    lines = [line for line in script.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) == len(commands), script
    for words in commands:
        arguments, json_file = take_json_file(words)
        output = done(*arguments)
        if json_file is not None:
            json_file.write_text(output)
