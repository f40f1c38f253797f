"""Test that `serve` and `package --triton` refuse invalid options in one line before they start a process."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.serving import environment, worker
from m2h_deploy.serving.options import ServeOptions
from m2h_deploy.serving.processes import group_members
from m2h_deploy.serving.server import _last_words, check_ports
from tests.commands import mistake
from tests.serving.conftest import PATIENCE, REPOSITORY, free_ports


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "a/b"}, "model name 'a/b'"),
        ({"http_port": 0}, "HTTP port 0"),
        ({"host": "::1"}, "IPv4"),
        ({"grpc_port": 70000}, "gRPC port 70000"),
        ({"http_port": 8001}, "need one each"),
        ({"max_batch": 0}, "largest batch 0"),
        ({"max_batch": 5000}, "largest batch 5000"),
        ({"delay_ms": -0.5}, "delay -0.5 ms"),
    ],
)
def test_invalid_options_give_a_one_line_error(values, words):
    with pytest.raises(M2HError) as error:
        ServeOptions(Path("bundle"), **values)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_loopback_is_the_default():
    assert ServeOptions(Path("bundle")).host == "127.0.0.1"


def test_a_taken_port_is_detected_before_the_start():
    http, grpc, metrics = free_ports()
    options = ServeOptions(Path("bundle"), http_port=http, grpc_port=grpc, metrics_port=metrics)
    check_ports(options)
    with (
        socket.create_server(("127.0.0.1", metrics)),
        pytest.raises(M2HError, match=f"{metrics} for metrics .* --metrics-port"),
    ):
        check_ports(options)


def test_an_address_that_is_not_this_machines_is_refused():
    with pytest.raises(M2HError, match=r"cannot listen on nowhere\.invalid:8000 .* give another --host"):
        check_ports(ServeOptions(Path("bundle"), host="nowhere.invalid"))


def test_without_the_extra_the_command_names_what_to_install(monkeypatch, tmp_path):
    if environment.find_spec("pytriton") is not None:
        pytest.skip("nvidia-pytriton is installed here")
    said = mistake("serve", tmp_path)
    assert "nvidia-pytriton, which is not installed" in said
    assert install_extra("serve,onnxruntime") in said


@pytest.mark.parametrize(
    ("listed", "version", "words"),
    [
        ("libpython3.11.so.1.0 => not found", None, "there is no libpython3.11.so.1.0"),
        ("libpython3.11.so.1.0 => /lib/libpython3.11.so.1.0 (0x7f)", "3.11.99", "of 3.11.99"),
        ("libpython3.11.so.1.0 => /lib/libpython3.11.so.1.0 (0x7f)", environment.platform.python_version(), None),
        ("libc.so.6 => /lib/libc.so.6 (0x7f)", None, None),
    ],
)
def test_the_libpython_that_triton_would_load_must_be_the_interpreters(monkeypatch, tmp_path, listed, version, words):
    ldd = tmp_path / "ldd"
    ldd.write_text(f"#!/bin/sh\necho '{listed}'\n")
    ldd.chmod(0o755)
    monkeypatch.setattr(environment.shutil, "which", lambda name: str(ldd))
    monkeypatch.setattr(environment, "_version_of", lambda library: version)
    problem = environment._libpython_problem(tmp_path / "stub", tmp_path)
    assert (problem is None) if words is None else (words in problem)


def test_the_version_of_a_missing_library_is_none(tmp_path):
    assert environment._version_of(str(tmp_path / "libpython.so")) is None


def test_the_errors_of_package_name_its_formats_and_options(tmp_path):
    assert mistake("package", tmp_path).startswith(
        "choose what to package for: --cpp, --mono-hydra, --hydra or --triton"
    )
    assert mistake("package", tmp_path, "--hydra", "--mono-hydra", "-o", tmp_path / "o").startswith(
        "--mono-hydra and --hydra exclude each other"
    )
    assert "--output FOLDER" in mistake("package", tmp_path, "--cpp")
    assert "leave --output out" in mistake("package", tmp_path, "--triton", tmp_path / "r", "-o", tmp_path / "o")
    assert "is not a bundle" in mistake("package", tmp_path, "--triton", tmp_path / "r")


def test_the_most_informative_line_of_tritons_log_is_shown(tmp_path):
    log = tmp_path / "log"
    log.write_text("I1122 fine\nE1122 10:00 a.cc:1] trouble\n\nI1122 more\n")
    assert _last_words(log) == "E1122 10:00 a.cc:1] trouble"
    log.write_text("E1122 10:00 a.cc:1] trouble\nerror: creating server:\nbye\n")
    assert _last_words(log) == "error: creating server:"
    log.write_text("tritonserver: error while loading shared libraries: libcudart\nexited with failure. Please wait.\n")
    assert _last_words(log).startswith("tritonserver: error while loading")
    log.write_text("I1122 fine\nSignal (11) received.\n")
    assert _last_words(log) == "Signal (11) received."
    log.write_text("")
    assert _last_words(log) == "it wrote nothing"


def test_the_members_of_a_process_group_exclude_dead_processes():
    process = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 0; wait"], start_new_session=True)
    try:
        end = time.monotonic() + PATIENCE  # a child has its parent's name until it executes another program
        while sorted(group_members(process.pid).values()) != ["sh", "sleep"] and time.monotonic() < end:
            time.sleep(0.01)
        assert sorted(group_members(process.pid).values()) == ["sh", "sleep"]
    finally:
        import os
        import signal

        os.killpg(process.pid, signal.SIGKILL)
    while group_members(process.pid):
        pass
    process.wait()


def test_the_worker_dies_with_its_parent(tmp_path):
    note = tmp_path / "pid"
    child = (
        "import os, sys, time\nfrom m2h_deploy.serving.worker import end_with_parent\nend_with_parent()\n"
        f"open({str(note)!r}, 'w').write(str(os.getpid()) + '.')\ntime.sleep(60)\n"
    )
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=REPOSITORY)
    while not (note.is_file() and note.read_text().endswith(".")):
        assert process.poll() is None
    pid = int(note.read_text()[:-1])
    process.kill()
    process.wait()
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        pass
    assert worker.LINGER < worker.DRAIN
