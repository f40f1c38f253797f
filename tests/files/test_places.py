"""Test where results can be written: mount points, read-only paths, pipes and devices, folders that are not empty."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from m2h_deploy import M2HError
from m2h_deploy.bundle.folder import MANIFEST, check_bundle_place, load_bundle
from m2h_deploy.files.atomic import check_folder, library_path, scratch_folder, whole_file, whole_folder, write_bytes
from tests.commands import environment, m2h, one_line, shell_with_mounts


def test_a_bundle_is_built_into_a_mount_point_and_replaced_there(tiny_onnx, tmp_path):
    (tmp_path / "m").mkdir()
    script = """
    mount -t tmpfs t m
    m2h build "$ONNX" -o m > built && m2h build "$ONNX" -o m --threads 1 > built &&
    ls -A m && cat m/manifest.json && m2h inspect m
    """
    ran = shell_with_mounts(script, cwd=tmp_path, env=environment(ONNX=str(tiny_onnx)))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split(b"{")[0].split() == [b"manifest.json", b"model.onnx"]
    assert b'"threads": 1' in ran.stdout


@pytest.mark.slow
def test_a_bind_mount_of_the_same_file_system_is_a_mount_point_too(tiny_bundle, tmp_path):
    for name in ("real", "m"):
        (tmp_path / name).mkdir()
    script = """
    mount --bind real m
    m2h export m2h-tiny -o real/x.onnx --height 56 --width 70 && mv real/x.onnx . && m2h build x.onnx -o m
    """
    ran = shell_with_mounts(script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert load_bundle(tmp_path / "real").manifest.input.height == 56
    assert {file.name for file in tmp_path.iterdir()} == {"real", "m", "x.onnx"}


def test_a_failed_build_keeps_the_bundle_of_a_mount_point(tiny_onnx, tmp_path):
    (tmp_path / "m").mkdir()
    script = """
    mount -t tmpfs -o size=26m t m
    m2h build "$ONNX" -o m || exit 9
    head -c 3m /dev/zero > fill; before=$(md5sum m/*)
    m2h build "$ONNX" -o m --engine openvino; rc=$?
    [ "$before" = "$(md5sum m/*)" ] && [ "$(ls -A m | wc -l)" = 2 ] || exit 8
    exit $rc
    """
    message = one_line(shell_with_mounts(script, cwd=tmp_path, env=environment(ONNX=str(tiny_onnx))))
    assert "No space left on device" in message


@pytest.mark.slow
def test_other_results_go_to_mount_points(tiny_bundle, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "report.json").touch()
    script = """
    mount -t tmpfs t m; touch m/r.json; mount --bind m/r.json report.json
    m2h rooms m --frames 1 --height 64 --width 64 && m2h run "$BUNDLE" m/images -o m &&
    m2h bench "$BUNDLE" --duration 0.1 --no-layers --json report.json && cat report.json && ls m
    """
    ran = shell_with_mounts(script, cwd=tmp_path, env=environment(BUNDLE=str(tiny_bundle)))
    assert ran.returncode == 0, ran.stderr
    assert b'{\n  "tool": "m2h-deploy' in ran.stdout
    assert b"room_0_00000_overlay.png" in ran.stdout


def test_read_only_places_are_named_before_the_work(tiny_checkpoint, tiny_onnx, tiny_bundle, tmp_path):
    (tmp_path / "room.png").write_bytes(b"never looked at")
    files = {"BUNDLE": tiny_bundle, "ONNX": tiny_onnx, "CHECKPOINT": tiny_checkpoint}
    env = environment(**{name: str(path) for name, path in files.items()})
    (tmp_path / "m").mkdir()
    (tmp_path / "c.toml").write_text(
        '[data]\nsource = "rooms"\ncount = 1\n[validation]\nsource = "rooms"\nseed = 1\ncount = 1\n', encoding="utf-8"
    )
    for command in (
        'm2h export "$CHECKPOINT" -o m/x.onnx',
        'm2h build "$ONNX" -o m',
        'm2h build "$ONNX" -o m/b',
        "m2h rooms m/o --frames 1",
        'm2h verify "$BUNDLE" --reference "$ONNX" --data . --html m/p.html',
        'm2h bench "$BUNDLE" --csv m/b.csv',
        "m2h quickstart -o m/q",
        "m2h train c.toml -o m/run",
        'm2h run "$BUNDLE" room.png --no-files --video m/v.mp4',
    ):
        message = one_line(shell_with_mounts(f"mount -t tmpfs -o ro t m; {command}", cwd=tmp_path, env=env))
        assert "read-only file system" in message.lower(), message


def test_pipes_and_devices_are_written_to_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(tmp_path / "pipe", b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    write_bytes(os.devnull, b"content")
    assert Path(os.devnull).is_char_device()
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]
    said = m2h("bench", "--help", cwd=tmp_path)
    assert said.returncode == 0


def test_folders_that_are_not_empty_are_kept(tiny_onnx, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(M2HError, match=r"not a bundle \(it holds notes\.txt\)"):
        check_bundle_place(tmp_path / "mine")
    with (
        pytest.raises(M2HError, match="exists: give a folder that does not, or an empty one"),
        whole_folder(tmp_path / "mine"),
    ):
        pass
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as temporary:
        (temporary / "new").touch()
    assert [file.name for file in (tmp_path / "empty").iterdir()] == ["new"]
    with pytest.raises(M2HError, match="is not a folder"):
        check_folder(tmp_path / "mine" / "notes.txt" / "below")


def test_a_bundle_that_holds_the_input_is_not_replaced(tiny_bundle):
    with pytest.raises(M2HError, match="which would be replaced"):
        check_bundle_place(tiny_bundle, tiny_bundle / "model.onnx")
    assert (tiny_bundle / MANIFEST).is_file()


def test_errors_other_than_write_errors_pass_through(tmp_path):
    for error in (KeyError("x"), FileNotFoundError(2, "No such file or directory", "/elsewhere/file")):
        with pytest.raises(type(error)), whole_file(tmp_path / "f"), scratch_folder("m2h-test-"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_libraries_get_file_names_that_they_can_open(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/d\xff")
    Path(folder).mkdir()
    for name in ("plain.txt", os.fsdecode(b"r\xe4.txt")):
        file = Path(folder) / name
        with library_path(file) as given:
            assert given.encode()
            assert Path(given).suffix == ".txt"
            Path(given).write_text("through", encoding="utf-8")  # also if the file is new
        assert file.read_text(encoding="utf-8") == "through"
    with library_path(tmp_path / "ö.txt") as given:
        assert given == str(tmp_path / "ö.txt")


@pytest.mark.slow
def test_file_names_that_are_not_utf8_work_in_every_command(tiny_onnx, tmp_path):
    folder = os.fsencode(tmp_path) + b"/d\xff"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/m\xe4.onnx")).write_bytes(tiny_onnx.read_bytes())
    rooms = m2h("rooms", folder + b"/rooms", "--frames", "2", "--height", "64", "--width", "64")
    assert rooms.returncode == 0, rooms.stderr
    for engine in ("onnxruntime", "openvino"):
        built = m2h("build", folder + b"/m\xe4.onnx", "-o", folder + b"/b\xff", "--engine", engine)
        assert built.returncode == 0, built.stderr
        assert b"/b\xff" in built.stderr  # as it is
        results = (b"-o", folder + b"/o\xfc", b"--video", folder + b"/v\xff.mp4", b"--overwrite", b"--json")
        ran = m2h("run", folder + b"/b\xff", folder + b"/rooms/images", *results)
        assert ran.returncode == 0, ran.stderr
    assert Path(os.fsdecode(folder + b"/o\xfc/room_0_00001_depth.png")).is_file()
    assert Path(os.fsdecode(folder + b"/v\xff.mp4")).is_file()
    again = m2h("run", folder + b"/b\xff", folder + b"/v\xff.mp4", "--limit", 1, b"-o", folder + b"/o2")
    assert again.returncode == 0, again.stderr
    values = (b"--html", folder + b"/r\xff.html", b"--junit", folder + b"/r.xml")
    data = (b"--reference", folder + b"/m\xe4.onnx", b"--data", folder + b"/rooms")
    verified = m2h("verify", folder + b"/b\xff", *data, *values)
    assert verified.returncode in (0, 1), verified.stderr
    assert b"Traceback" not in verified.stderr
    assert Path(os.fsdecode(folder + b"/r\xff.html")).is_file()
