"""Test standard streams as left by shells, pipes, containers and terminals, and unusual environments."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.commands import COMMAND, ROOT, as_user_without_passwd_entry, environment, m2h, one_line, shell


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_marks_are_plain_where_the_encoding_lacks_them(encoding):
    said = m2h("doctor", env=environment(PYTHONIOENCODING=encoding))
    assert said.returncode == 0, said.stderr
    text = said.stdout.decode(encoding)
    assert (" ✓ " if encoding == "utf-8" else " + ") in text
    assert "?" not in text


def test_commands_work_with_closed_streams(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "b")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    run = "m2h run b a.png -o o --json"
    for script in (f"{run} >&-", f"{run} 2>&-", f"{run} <&-", f"{run} <&- >&- 2>&-"):
        ran = shell(script, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert cv2.imread(str(tmp_path / "o" / "a_depth.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16
        shutil.rmtree(tmp_path / "o")


def test_a_closed_pipe_does_not_stop_the_work(tiny_bundle, tmp_path):
    """`| head -c 0` closes the pipe long before the result: files are still written, and the exit code is 0."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    script = 'set -o pipefail; m2h run "$B" a.png -o o --json | head -c 0; m2h doctor 2>&1 | head -c 1 > /dev/null'
    ran = shell(script, cwd=tmp_path, env=environment(B=str(tiny_bundle)))
    assert ran.returncode == 0, ran.stderr
    assert b"Broken" not in ran.stderr
    assert (tmp_path / "o" / "a_overlay.png").is_file()


def test_json_reaches_a_pipe_while_the_command_goes_on():
    program = """
import sys
from cli.console import print_json
from m2h_deploy.stdio import prepare_streams
prepare_streams()
print_json({"ready": True})
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        ready, _, _ = select.select([process.stdout], [], [], 60)
        assert ready, "the line waits in a buffer"
        assert process.stdout.readline() == b'{"ready": true}\n'
        process.stdin.close()


def test_results_that_cannot_be_written_are_an_error(tmp_path):
    assert "cannot write to standard output: No space left on device" in one_line(
        shell("m2h doctor > /dev/full", cwd=tmp_path)
    )
    assert shell("m2h doctor 2> /dev/full", cwd=tmp_path).returncode == 0


def test_strange_environments(tmp_path):
    nothing = {"PYTHONPATH": str(ROOT)}
    for env in (
        nothing,
        environment(COLUMNS="20"),
        environment(TERM="dumb", COLUMNS="0"),
        environment(HOME="/proc/nowhere"),
        environment(LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"),
    ):
        assert json.loads(m2h("doctor", "--json", env=env).stdout)["m2h_deploy"]
        assert m2h("doctor", env=env).returncode == 0
    gone = tmp_path / "gone"
    gone.mkdir()
    assert "working directory was removed" in one_line(shell("rmdir ../gone; m2h export m2h-tiny", cwd=gone))


@pytest.mark.slow
def test_a_user_without_a_home_or_a_passwd_entry(tiny_checkpoint, tiny_bundle, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    (tmp_path / "work").mkdir()
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}

    def stranger(program: str, *arguments: object) -> str:
        command = [*as_user_without_passwd_entry(), sys.executable, "-c", program, *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "work", env=env, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    private = f"import os; assert os.getuid() == 4242; os.umask(0o077)\n{COMMAND[2]}"
    stranger(private, "run", tiny_bundle, "../a.png", "-o", "o")
    stranger(private, "export", tiny_checkpoint, "-o", "m.onnx", "--height", 56, "--width", 70)
    stranger(private, "build", "m.onnx", "-o", "b")
    work = tmp_path / "work"
    assert {entry.name for entry in work.iterdir()} == {"o", "m.onnx", "b"}  # and no folder called ~
    assert {oct(file.stat().st_mode & 0o777) for file in work.rglob("*") if file.is_file()} == {"0o600"}
    cache = "from m2h_deploy.files.cache import user_cache_folder; print(user_cache_folder('x'))"
    assert stranger(cache).strip() == "None"


@pytest.mark.slow
def test_a_locale_with_a_decimal_comma(tiny_onnx, tmp_path):
    """Set the locale for the C library too, like a program that embeds Python."""
    locales = tmp_path / "locales"
    locales.mkdir()
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.UTF-8")], capture_output=True, check=False
    )
    if not (locales / "de_DE.UTF-8").is_dir():
        pytest.skip(f"no locale with a decimal comma ({made})")
    env = environment(LOCPATH=str(locales), LC_ALL="de_DE.UTF-8")
    program = f"import locale; locale.setlocale(locale.LC_ALL, ''); assert f'{{0.5:n}}' == '0,5'\n{COMMAND[2]}"

    def german(*arguments: object) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
        assert ran.returncode in (0, 1), ran.stderr
        return ran.stdout

    german("rooms", "rooms", "--frames", 8, "--height", 64, "--width", 64)
    for engine in ("onnxruntime", "openvino"):
        german("build", tiny_onnx, "-o", "b", "--engine", engine)
        timings = json.loads(german("run", "b", "rooms/images", "-o", "o", "--json", "--video", "v.mp4"))
        assert timings["frames"] == 8
        result = json.loads(
            german("verify", "b", "--reference", tiny_onnx, "--data", "rooms", "--json", "--psnr", 20.5)
        )
        assert result["tensors"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminal_that_hangs_up_leaves_a_complete_recording(tiny_bundle, tmp_path, number):
    program = started(tiny_bundle, tmp_path)
    program.send_signal(number)
    _, errors = program.communicate()
    assert program.returncode == 130, errors
    assert b"Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} == {"v.avi", "o", "o.mp4"}
    assert cv2.VideoCapture(str(tmp_path / "o.mp4")).read()[0]


def test_nohup_is_respected(tiny_bundle, tmp_path):
    program = started(tiny_bundle, tmp_path, frames=4, ignored=True)
    program.send_signal(signal.SIGHUP)
    _, errors = program.communicate()
    assert program.returncode == 0, errors
    assert len(list((tmp_path / "o").glob("*_overlay.png"))) == 4


def started(bundle: Path, folder: Path, *, frames: int = 3000, ignored: bool = False) -> subprocess.Popen[bytes]:
    """Start a run with a recording, and wait until the first frames are written."""
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(frames):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    handler = "SIG_IGN" if ignored else "SIG_DFL"  # independent of how the tests were started
    start = f"import signal; signal.signal(signal.SIGHUP, signal.{handler})\n"
    command = [sys.executable, "-c", start + COMMAND[2], "run", str(bundle), "v.avi", "-o", "o", "--video", "o.mp4"]
    pipe = subprocess.PIPE
    program = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=pipe, cwd=folder, env=environment())
    while len(list(folder.glob("o/*_overlay.png"))) < 2 and program.poll() is None:
        signal.sigtimedwait([], 0.02)
    assert program.poll() is None or ignored
    return program
