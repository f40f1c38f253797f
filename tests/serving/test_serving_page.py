"""Test the commands and the client of docs/serving.md."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

import cv2
import pytest

from m2h_deploy.data.rooms.render import render_room
from tests.pages import Page
from tests.serving.conftest import PATIENCE

PAGE = Page("serving.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Run every `bash` block of the page, from top to bottom, and return the folder."""
    folder = tmp_path_factory.mktemp("page")
    PAGE.run(folder, count=3)
    return folder


@pytest.mark.serving
def test_the_page_s_commands_work_from_top_to_bottom(folder):
    assert (folder / "repository" / "m2h" / "1" / "model.py").is_file()
    config = (folder / "repository" / "camera" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert "max_batch_size: 8" in config


@pytest.mark.serving
def test_the_page_s_client_gets_labels_and_meters(triton, folder):
    client = folder / "client.py"
    client.write_text("".join(PAGE.blocks("python")) + "print(len(names), names[0])\n")
    cv2.imwrite(str(folder / "picture.png"), render_room(0, 0, 120, 160).image)
    with triton.served(folder / "bundle") as server:
        command = [triton.python, client, f"127.0.0.1:{server.http}", folder / "picture.png"]
        done = subprocess.run(list(map(str, command)), env=triton.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert re.fullmatch(r"160 x 120, \d+\.\d\d to \d+\.\d\d m\n41 unknown\n", done.stdout)
        for address in re.findall(r"curl -s (\S+)", PAGE.text):
            port = server.http if ":8000" in address else server.metrics
            url = "http://" + re.sub(r":800\d", f":{port}", address)
            assert urlopen(url, timeout=PATIENCE).status == 200


def test_every_option_on_the_page_exists():
    import typer

    from cli import app

    command = typer.main.get_command(app).commands["serve"]
    options = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    table = PAGE.text[PAGE.text.index("| Option |") : PAGE.text.index("The input is")]
    named = set(re.findall(r"`(--[a-z-]+)", table)) | set(re.findall(r", `(--[a-z-]+)`", table))
    assert named == options
