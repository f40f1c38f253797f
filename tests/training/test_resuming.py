"""Test that a killed and resumed run is bitwise identical to an uninterrupted one."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m2h_deploy.errors import M2HError
from m2h_deploy.model import load_checkpoint
from m2h_deploy.training import TrainConfig, interrupted_message, train
from m2h_deploy.training.loop import STATE
from m2h_deploy.training.record import read_record
from m2h_deploy.training.state import load_state
from tests.commands import COMMAND


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(frames: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    from tests.training.conftest import SMALL

    folder = tmp_path_factory.mktemp("whole") / "run"
    train(SMALL, folder, cache=frames, device="cpu")
    return folder


def test_a_run_writes_model_record_plot_and_evaluation(whole: Path, small: TrainConfig) -> None:
    assert sorted(p.name for p in whole.iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "losses.csv",
        "losses.png",
        "model.safetensors",
    ]
    rows = read_record(whole / "losses.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert [row["stage"] for row in rows] == ["warm start"] * 2 + ["initial"] * 4 + ["fine-tuning"] * 4
    assert [bool(row["loss_depth_normals"]) for row in rows] == [False] * 6 + [True] * 4
    assert load_checkpoint(whole / "model.safetensors").config.channels == 16


def test_the_same_seed_gives_the_same_bits(whole: Path, small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    train(small, tmp_path / "again", cache=frames, device="cpu")
    assert digest(tmp_path / "again") == digest(whole)


@pytest.mark.parametrize("step", [1, 8], ids=lambda step: f"after step {step}")
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(
    step: int, whole: Path, small: TrainConfig, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2h_deploy.training import loop

    class Killed(BaseException):
        """Raise an exception that the program does not handle, like a power failure."""

    original = loop._step

    def dies(stage: loop.Stage, sample: object, done: int, total: int) -> dict[str, float]:
        losses = original(stage, sample, done, total)
        if stage.run.position.total + 1 == step:
            raise Killed
        return losses

    folder = tmp_path / "killed"
    monkeypatch.setattr(loop, "_step", dies)
    with pytest.raises(Killed):
        train(small, folder, cache=frames, device="cpu")
    monkeypatch.undo()
    train(small, folder, existing="resume", cache=frames, device="cpu")
    assert digest(folder) == digest(whole)
    assert (folder / "losses.csv").read_text() == (whole / "losses.csv").read_text()


def test_ctrl_c_saves_the_state_and_leaves_no_partial_file(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from m2h_deploy.training import train\n"
        "from tests.training.conftest import SMALL\n"
        "stages = (replace(SMALL.stages[1], epochs=10000),)\n"
        "try:\n"
        "    train(replace(SMALL, stages=stages, save_steps=100000), sys.argv[1], cache=sys.argv[2], device='cpu')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder), str(frames)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (".", os.environ.get("PYTHONPATH")) if p)},
        stderr=subprocess.DEVNULL,
    )
    record = folder / "losses.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (record.is_file() and len(record.read_text().splitlines()) > 2):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    steps = len(read_record(record))
    assert load_state(folder / "state.pt")["position"]["total"] == steps > 1
    assert sorted(p.name for p in folder.iterdir()) == ["losses.csv", "state.pt"]


def test_ctrl_c_reports_the_saved_state_and_how_to_resume(frames: Path, tmp_path: Path) -> None:
    config, folder = tmp_path / "run.toml", tmp_path / "run"
    config.write_text(
        "variant = 'm2h-tiny'\nlayer_scale = 1.0\nsave_steps = 100000\n"
        "model = {channels = 16, head_channels = [8, 8]}\n"
        "[data]\ncount = 8\nseed = 1\nheight = 42\nwidth = 42\n[validation]\ncount = 2\nseed = 2\nheight = 42\n"
        "width = 42\n[[stage]]\nname = 'initial'\nepochs = 10000\nbatch_size = 4\n"
    )
    command = [*COMMAND, "train", str(config), "-o", str(folder), "--cache", str(frames), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    record = folder / "losses.csv"
    while not (record.is_file() and len(record.read_text().splitlines()) > 2):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert f"interrupted: the state is saved in {folder / 'state.pt'}; the same command with --resume" in said
    assert (folder / "state.pt").is_file()
    assert "Traceback" not in said


def test_ctrl_c_before_the_first_step_reports_that_nothing_can_be_resumed(tmp_path: Path) -> None:
    assert "nothing to resume" in interrupted_message(tmp_path)
    (tmp_path / STATE).write_bytes(b"")
    assert "with --resume goes on" in interrupted_message(tmp_path)
    assert "--resume in place of --overwrite" in interrupted_message(tmp_path, overwrite=True)


def test_a_finished_or_unfinished_run_is_not_replaced(
    whole: Path, small: TrainConfig, frames: Path, tmp_path: Path
) -> None:
    with pytest.raises(M2HError, match="finished run"):
        train(small, whole, cache=frames)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"version": 1, "values": {}, "random": {}}, folder / "state.pt")
    with pytest.raises(M2HError, match="unfinished run"):
        train(small, folder, cache=frames)


def test_a_broken_state_is_named(small: TrainConfig, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(M2HError, match=r"state\.pt is not a training state") as error:
        train(small, tmp_path, existing="resume", cache=frames)
    assert "\n" not in str(error.value)
