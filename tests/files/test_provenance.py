"""Test that results replace earlier results of their kind, and no other file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import typer

import cli
from m2h_deploy import M2HError
from m2h_deploy.files.provenance import check_output, check_outputs, is_own, mark_mp4
from m2h_deploy.runtime.postprocess import Prediction
from m2h_deploy.sinks.files import check_result, check_results, write_prediction
from tests.commands import m2h, one_line

KINDS = ("png", "room", "npz", "mp4", "rrd", "onnx", "json", "csv", "html", "junit", "log")


@pytest.fixture
def prediction() -> Prediction:
    depth = np.linspace(1, 2, 64 * 64, dtype=np.float32).reshape(64, 64)
    return Prediction(depth, np.ones((64, 64), np.uint8), None, None, {})


@pytest.fixture
def picture(tmp_path) -> Path:
    cv2.imwrite(str(tmp_path / "room.png"), np.full((64, 64, 3), 90, np.uint8))
    return tmp_path / "room.png"


def write(folder: Path, prediction: Prediction, classes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    return write_prediction(folder, "a", np.zeros((64, 64, 3), np.uint8), prediction, classes, npz=True)


@pytest.fixture
def classes(tiny_bundle):
    from m2h_deploy.bundle.folder import load_bundle

    return load_bundle(tiny_bundle).manifest.classes


def test_results_are_recognized_also_after_a_copy(prediction, classes, tmp_path):
    for file in write(tmp_path / "out", prediction, classes):
        kind = "npz" if file.suffix == ".npz" else "png"
        copy = Path(shutil.copy(file, tmp_path / f"copy{file.suffix}"))
        assert [found for found in KINDS if is_own(copy, found)] == [kind]
    depth = cv2.imread(str(tmp_path / "out" / "a_depth.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(depth, np.rint(prediction.depth * 1000).astype(np.uint16))
    with np.load(tmp_path / "out" / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["depth"], prediction.depth)


def test_files_of_other_programs_are_not_replaced(prediction, classes, tmp_path):
    folder = tmp_path / "out"
    for file in write(folder, prediction, classes):
        check_result(folder, "a", npz=True)
        own = file.read_bytes()
        image = cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes()
        file.write_bytes(image if file.suffix == ".png" else b"PK the data set's own")
        for check in (
            lambda: check_result(folder, "a", npz=True),
            lambda: check_results(folder, {"a"}, npz=True),
        ):
            with pytest.raises(M2HError, match=rf"{file.name} exists.*--overwrite"):
                check()
        check_results(folder, {"b"}, npz=True)
        file.write_bytes(own)
    (folder / "a.npz").write_bytes(b"mine")
    check_result(folder, "a")  # without --npz it is not written


def test_exported_files_are_recognized_by_their_metadata(tiny_onnx, tmp_path):
    assert is_own(tiny_onnx, "onnx")
    proto = onnx.load(tiny_onnx)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "theirs.onnx")
    assert not is_own(tmp_path / "theirs.onnx", "onnx")
    for content in (b"", b"m2h.version", b"\xff" * 40, os.urandom(4000), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"):
        (tmp_path / "other").write_bytes(content)
        assert not is_own(tmp_path / "other", "onnx")


def test_a_marked_video_still_plays(tmp_path):
    path = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 64))
    for value in range(3):
        writer.write(np.full((64, 64, 3), 50 * value, np.uint8))
    writer.release()
    assert not is_own(path, "mp4")
    mark_mp4(path)
    assert is_own(path, "mp4")
    video = cv2.VideoCapture(str(path))
    assert [video.read()[0] for _ in range(4)] == [True, True, True, False]


def test_empty_files_devices_and_new_files_may_be_written(tmp_path):
    (tmp_path / "empty.csv").touch()
    assert check_output(tmp_path / "empty.csv", "csv") == tmp_path / "empty.csv"
    assert check_output(tmp_path / "new.csv", "csv") == tmp_path / "new.csv"
    assert check_output(Path(os.devnull), "csv") == Path(os.devnull)


def test_an_input_file_is_never_replaced(tiny_onnx, tmp_path):
    model = Path(shutil.copy(tiny_onnx, tmp_path / "m.onnx"))
    (tmp_path / "link.onnx").symlink_to(model)
    for place in (model, tmp_path / "link.onnx"):
        with pytest.raises(M2HError, match="is read by this command"):
            check_output(place, "onnx", overwrite=True, sources=[model])
    (tmp_path / "x").mkdir()
    with pytest.raises(M2HError, match="one file"):
        check_outputs({"junit": tmp_path / "r", "html": tmp_path / "x" / ".." / "r"} | {"csv": None})


def test_every_command_that_writes_has_the_one_option():
    commands = typer.main.get_command(cli.app).commands
    writing = {"export", "build", "verify", "calibrate", "bench", "run", "serve", "rooms", "train", "quickstart"}
    writing |= {"inspect"}
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--overwrite" in options) == (name in writing), name


def test_run_keeps_data_set_files_beside_a_picture(tiny_bundle, picture):
    truth = picture.with_name("room_depth.png")
    truth.write_bytes(b"the data set's own depth")
    command = ("run", tiny_bundle, picture, "-o", picture.parent)
    message = one_line(m2h(*command))
    assert "room_depth.png exists, and m2h-deploy did not write it" in message
    assert truth.read_bytes() == b"the data set's own depth"
    assert {file.name for file in picture.parent.iterdir()} == {"room.png", "room_depth.png"}  # before the work
    assert m2h(*command, "--overwrite").returncode == 0
    assert m2h(*command).returncode == 0  # and replaces its own files without --overwrite


def test_commands_check_existing_files_before_they_work(tiny_checkpoint, tiny_onnx, tiny_bundle, picture, tmp_path):
    mine = tmp_path / "mine"
    for name in ("m.onnx", "r.json", "r.html", "r.xml", "b.csv", "v.mp4", "l.txt"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    rooms = tmp_path / "rooms" / "edge"
    rooms.mkdir(parents=True)
    (rooms / "room_0_00000.png").write_text("mine", encoding="utf-8")
    data = ("--reference", tiny_onnx, "--data", picture.parent)
    for command in (
        ("export", tiny_checkpoint, "-o", tmp_path / "m.onnx"),
        ("build", tiny_onnx, "-o", mine, "--precision", "fp16", "--graph", tmp_path / "m.onnx"),
        ("verify", tiny_bundle, *data, "--json", tmp_path / "r.json"),
        ("verify", tiny_bundle, *data, "--html", tmp_path / "r.html"),
        ("verify", tiny_bundle, *data, "--junit", tmp_path / "r.xml"),
        ("bench", tiny_bundle, "--csv", tmp_path / "b.csv"),
        ("run", tiny_bundle, picture, "--no-files", "--video", tmp_path / "v.mp4"),
        ("serve", tiny_bundle, "--log", tmp_path / "l.txt"),
        ("rooms", rooms.parent, "--frames", 1),
        ("quickstart", "-o", rooms.parent.parent / "q"),
    ):
        if command[0] == "quickstart":
            (tmp_path / "q").mkdir()
            (tmp_path / "q" / "model.onnx").write_text("mine", encoding="utf-8")
        assert "--overwrite" in one_line(m2h(*command)), command
    texts = [file for file in tmp_path.rglob("*") if file.is_file() and file != picture]
    assert {file.read_text(encoding="utf-8") for file in texts} == {"mine"}
    assert not mine.exists()
