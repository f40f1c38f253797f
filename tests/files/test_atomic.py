"""Test atomic file writes, also when several threads write the same file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from m2h_deploy import M2HError
from m2h_deploy.files.atomic import check_writable, is_temporary, whole_file, whole_folder, write_bytes
from m2h_deploy.files.names import shorten


def test_threads_that_write_one_file_do_not_interfere(tmp_path):
    contents = [bytes([index]) * 200_000 for index in range(8)]
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def write(content: bytes) -> None:
        start.wait()
        try:
            for _ in range(5):
                write_bytes(tmp_path / "file", content)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (tmp_path / "file").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_writers_at_once_have_two_temporary_files(tmp_path):
    with whole_file(tmp_path / "a.png") as first, whole_file(tmp_path / "a.png") as second:
        assert first != second
        assert {first.suffix, second.suffix} == {".png"}
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert (tmp_path / "a.png").read_bytes() == b"1"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    write_bytes(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "file") as temporary:
        Path(temporary).write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LEGAL = [
    "x" * 255,
    "空" * 85,
    "x" * 251 + ".png",
    "." + "x" * 254,
    "a." + "x" * 253,
    "12:30 %d [*].png",
    "-rf",
    "é" * 127,
]


@pytest.mark.parametrize("name", LEGAL)
def test_every_valid_file_name_is_written(name, tmp_path):
    write_bytes(tmp_path / name, b"content")
    with whole_file(tmp_path / name) as temporary:
        assert is_temporary(temporary.name, name) and not is_temporary(name, name)
        temporary.write_bytes(b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"new"}
    with whole_folder(tmp_path / "folder" / name) as folder:
        (folder / "file").write_bytes(b"")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == [name]


def test_an_invalid_file_name_gives_a_one_line_error(tmp_path):
    for place in (tmp_path / ("x" * 256), tmp_path / ("空" * 86)):
        with pytest.raises(M2HError, match="longer than 255 bytes"):
            check_writable(place)
        with pytest.raises(M2HError, match="cannot write"):
            write_bytes(place, b"")
    assert list(tmp_path.iterdir()) == []


def test_names_are_shortened_deterministically_and_stay_distinct():
    assert shorten("x" * 243, 243) == "x" * 243
    long = [shorten(name, 243) for name in ("空" * 85, "空" * 84 + "间", "x" * 244, "x" * 243 + "y")]
    assert len(set(long)) == 4 and all(len(os.fsencode(name)) <= 243 for name in long)
    assert long[0] == shorten("空" * 85, 243) and long[0].startswith("空" * 78 + "~")
    assert len(os.fsencode(shorten(os.fsdecode(b"\xff" * 250), 243))) <= 243


def test_unwritable_paths_are_detected_in_advance(tmp_path):
    assert check_writable(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(M2HError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(M2HError, match="there is no folder"):
        check_writable(tmp_path / "none" / "file")
