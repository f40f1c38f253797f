"""Files appear whole or not at all, also when several threads write the same one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from m2h_deploy import M2HError
from m2h_deploy.files import check_writable, whole_file, write_bytes


def test_threads_that_write_one_file_do_not_meet(tmp_path):
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


def test_places_that_cannot_be_written_are_known_before(tmp_path):
    assert check_writable(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(M2HError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(M2HError, match="there is no folder"):
        check_writable(tmp_path / "none" / "file")
