"""Test that a full disk, no memory, no permission and too many open files are not reported as a damaged file."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError
from m2h_deploy.causes import NO_MEMORY, NO_SPACE, MachineError, failure, machine_fault, reason
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.files.arrays import read_array
from tests.commands import COMMAND, ROOT, environment, one_line, shell_with_mounts


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is None:
            raise error
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO])
def test_a_system_error_is_a_machine_fault(code):
    words = os.strerror(code)
    assert machine_fault(OSError(code, words, "file")) == words
    assert machine_fault(raised(RuntimeError("cannot parse"), OSError(code, words))) == words
    assert machine_fault(RuntimeError(f"library.cc:12: {words}: x.onnx")) == words
    assert machine_fault(RuntimeError(f"open file failed, system error number {code}")) == words
    told = failure(OSError(code, words), "cannot read x", "x is not an ONNX file")
    assert isinstance(told, MachineError)
    assert str(told) == f"cannot read x: {words}"


def test_out_of_memory_is_a_machine_fault():
    for error in (
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
    ):
        assert machine_fault(error) == NO_MEMORY


def test_damaged_file_content_is_not_a_machine_fault():
    for error in (ValueError("bad header"), EOFError(), OSError("file signature not found"), KeyError("x")):
        assert machine_fault(error) is None
        assert str(failure(error, "cannot read x", "x is damaged")) == "x is damaged"
    assert reason(EOFError()) == "EOFError"
    context = ValueError("bad")
    context.__context__ = PermissionError(errno.EACCES, "Permission denied")  # unrelated, handled before
    assert machine_fault(context) is None
    context.__context__ = OSError(errno.ENOSPC, NO_SPACE)
    assert machine_fault(context) == NO_SPACE


def test_a_truncated_array_is_damaged_whatever_size_it_states(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(4))
    content = (tmp_path / "a.npy").read_bytes().replace(b"(4,), }     ", b"(4" + b"0" * 14 + b",), }")[:200]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(M2HError, match=r"is not a readable \.npy file"):
        read_array(tmp_path / "a.npy", "depth")


READERS = """
import sys
from pathlib import Path
from m2h_deploy import M2HError
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.nyuv2 import NYUv2
from m2h_deploy.files.arrays import read_array
from m2h_deploy.files.images import read_image, read_plane
from m2h_deploy.model import load_checkpoint
from m2h_deploy.sources.source import open_source
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.parity.locate import _load as load_reference
import m2h_deploy.training.state as state
import onnxruntime, h5py, tokenize, zipfile, json, torch, safetensors, os, resource
folder = Path(sys.argv[1])
readers = {
    "picture.png": [lambda p: open_source(str(p)), read_image, lambda p: read_plane(p, "depth")],
    "v.avi": [lambda p: open_source(str(p))],
    "a.npy": [lambda p: read_array(p, "depth")],
    "m.onnx": [read_onnx, load_reference],
    "c.pt": [load_checkpoint, state.load_state],
    "c.safetensors": [load_checkpoint],
    "m.mat": [lambda p: NYUv2.from_mat(p)],
    "bundle": [load_bundle],
}
for read in (f for name, several in readers.items() for f in several):  # whatever is imported late
    try:
        read(folder / "nothing.onnx")
    except Exception:
        pass
VARIANT
for name, several in readers.items():
    for read in several:
        try:
            read(folder / name)
            print(name, "was read")
        except M2HError as error:
            print(name, "|", error)
        except OSError as error:
            print(name, "|", error)
"""

UNPRIVILEGED = "os.setgid(4242); os.setuid(4242)"
NO_FILES = """
spare = []
try:
    while True:
        spare.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
"""


@pytest.fixture
def files(tiny_bundle, tiny_onnx, tmp_path) -> Path:
    """Return valid files of every kind that is read, each readable only by its owner."""
    cv2.imwrite(str(tmp_path / "picture.png"), np.zeros((64, 64, 3), np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    np.save(tmp_path / "a.npy", np.ones((4, 4), np.float32))
    for name in ("c.pt", "c.safetensors", "m.mat", "splits.mat", "classMapping40.mat"):
        (tmp_path / name).write_bytes(b"never looked at")
    (tmp_path / "m.onnx").write_bytes(tiny_onnx.read_bytes())
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_bytes((tiny_bundle / "manifest.json").read_bytes())
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.chmod(0o600)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


@pytest.mark.parametrize(("variant", "words"), [(UNPRIVILEGED, "Permission denied"), (NO_FILES, "Too many open files")])
def test_readers_name_the_true_cause(files, variant, words):
    if variant == UNPRIVILEGED and os.geteuid() != 0:
        pytest.skip("only root can become another user")
    program = READERS.replace("VARIANT", variant)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    ran = subprocess.run(
        [sys.executable, "-c", program, str(files)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        check=False,
        preexec_fn=limit,
    )
    lines = ran.stdout.splitlines()
    assert len(lines) == 12, ran.stdout + ran.stderr
    assert [line for line in lines if words not in line] == []


FULL = """
mkdir m; mount -t tmpfs -o size=300k t m
"""


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("command", "blamed"),
    [
        ('m2h run "$BUNDLE" room.png -o m/o --npz', "m/o/room"),
        pytest.param('m2h export "$CHECKPOINT" -o m/x.onnx --height 56 --width 70', "m/x.onnx", marks=SLOW),
        ('m2h build "$ONNX" -o m/b', "/m/b:"),
        ('m2h build "$ONNX" -o m/b --engine openvino', "/m/b:"),
        ("m2h rooms m/r --frames 40", "m/r/"),
        pytest.param(
            'TMPDIR=$PWD/m m2h build "$ONNX" -o there --precision fp16', "temporary folder", marks=pytest.mark.slow
        ),
        pytest.param(
            'TMPDIR=$PWD/m m2h evaluate "$CHECKPOINT" c.toml', "cannot keep frames in", marks=pytest.mark.slow
        ),
        pytest.param("m2h train c.toml -o m/run", "cannot keep frames in", marks=SLOW),
    ],
)
def test_a_full_disk_is_named_by_every_command_that_writes(
    command, blamed, tiny_bundle, tiny_onnx, tiny_checkpoint, tmp_path
):
    cv2.imwrite(str(tmp_path / "room.png"), render_room(0, 0, height=480, width=640).image)
    rooms = '[data]\nsource = "rooms"\ncount = 4\n[validation]\nsource = "rooms"\nseed = 1\ncount = 4\n'
    (tmp_path / "c.toml").write_text(rooms, encoding="utf-8")
    files = {"BUNDLE": tiny_bundle, "ONNX": tiny_onnx, "CHECKPOINT": tiny_checkpoint}
    env = environment(**{name: str(path) for name, path in files.items()})
    script = f"{FULL} {command}; rc=$?; ls -A m | grep -v '^[or]$'; exit $rc"
    message = one_line(shell_with_mounts(script, cwd=tmp_path, env=env))
    assert blamed in message, message
    assert NO_SPACE in message, message
    (tmp_path / "m").rmdir()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.toml", "room.png"]


def test_a_recording_is_readable_after_the_disk_is_full(tiny_bundle, tmp_path):
    rng = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (640, 480))
    for _ in range(12):
        writer.write(rng.integers(0, 255, (480, 640, 3), np.uint8))
    writer.release()
    (tmp_path / "m").mkdir()
    script = (
        'mount -t tmpfs -o size=9m t m; m2h run "$BUNDLE" v.avi --no-files --video m/o.mp4; rc=$?; cp m/* .; exit $rc'
    )
    message = one_line(shell_with_mounts(script, cwd=tmp_path, env=environment(BUNDLE=str(tiny_bundle))))
    assert NO_SPACE in message
    assert "m/o.mp4" in message
    assert {file.name for file in tmp_path.iterdir()} == {"v.avi", "m", "o.mp4"}
    assert cv2.VideoCapture(str(tmp_path / "o.mp4")).read()[0]


def test_an_unwritable_cache_does_not_change_the_result(tiny_onnx, tmp_path):
    from engines.precision.calibration import Calibration, measure_ranges, select_frames
    from m2h_deploy.onnx_graph.files import read_onnx

    rng = np.random.default_rng(0)
    frames = select_frames(
        (rng.standard_normal((1, 3, 112, 140)).astype(np.float32) for _ in range(1)), count=1, held_out=0
    )
    proto = read_onnx(tiny_onnx)
    names = [proto.graph.node[5].output[0]]
    wanted = measure_ranges(proto, "0" * 64, names, Calibration(frames))
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        assert measure_ranges(proto, "0" * 64, names, Calibration(frames, cache=cache)) == wanted


def test_a_missing_temporary_folder_is_reported(tiny_onnx, tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_onnx.read_bytes())
    script = """
    mount --bind . /mnt
    for folder in /tmp /var/tmp /usr/tmp; do
        [ -d $folder ] && mount --bind $folder $folder && mount -o remount,ro,bind $folder
    done
    cd /tmp; TMPDIR=/proc/nowhere m2h build /mnt/m.onnx -o /mnt/b
    """
    message = one_line(shell_with_mounts(script, cwd=tmp_path))
    assert "no temporary folder can be written (/proc/nowhere): set TMPDIR" in message
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path):
    with (tmp_path / "big.onnx").open("wb") as file:
        file.truncate(64 << 30)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (32 << 30,) * 2)"
    command = [sys.executable, "-c", f"{limit}\n{COMMAND[2]}", "inspect", str(tmp_path / "big.onnx")]
    message = one_line(subprocess.run(command, capture_output=True, env=environment(), check=False))
    assert message == f"error: cannot read {tmp_path / 'big.onnx'}: {NO_MEMORY}"
