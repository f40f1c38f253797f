"""Test the commands as a user types them: output, Ctrl-C, and errors."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time

import pytest

from tests.cluster.processes import descendants
from tests.commands import launch

pytest.importorskip("ray", reason="needs the extra ray")


@pytest.mark.slow
def test_ctrl_c_leaves_no_process_and_the_same_command_resumes(tiny_bundle, pictures, tmp_path):
    for index in range(11, 80):
        shutil.copy(pictures / "room00.png", pictures / f"room{index:02d}.png")
    run = launch("run", tiny_bundle, pictures, "-o", tmp_path / "out", "--ray", "local", "--ray-workers", 2, "--json")
    process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done = tmp_path / "out" / ".m2h" / "done"
    deadline = time.monotonic() + 120
    while len(list(done.glob("*.json"))) < 3 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    family = descendants(process.pid)
    assert len(family) > 3  # Ray is installed
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(family)
    kept = len(list(done.glob("*.json")))

    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    values = json.loads(again.stdout)
    assert (values["frames"], values["reused"]) == (80, kept)
    assert 3 <= kept < 80
    assert "ray" not in again.stderr.lower()
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == 80


def alive(pids: list[int]) -> list[int]:
    return sorted(set(pids) & set(descendants(1)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("SOURCE", "--ray", "127.0.0.1:1"), "no Ray at '127.0.0.1:1'"),
        (("SOURCE/room00.png", "--ray", "local"), "takes a folder of images"),
        (("SOURCE", "--ray", "local", "--video", "v.mp4"), "run without --ray"),
    ],
)
def test_a_mistake_gives_a_one_line_error(arguments, words, tiny_bundle, pictures, tmp_path):
    given = [argument.replace("SOURCE", str(pictures)) for argument in arguments]
    result = subprocess.run(
        launch("run", tiny_bundle, *given, "-o", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert words in result.stderr
    assert [line[:7] for line in result.stderr.splitlines() if "error" in line] == ["error: "]
