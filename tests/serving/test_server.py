"""Test a bundle on a real Triton server through tritonclient: same numbers, no lost requests, no leftovers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.serving.conftest import PATIENCE, PEER, calibrated_copy, free_ports

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def server(triton, small_bundle):
    with triton.served(small_bundle) as server:
        yield server


def check_parity(report, requests):
    assert report["failures"] == []
    assert report["answered"] == requests
    assert report["worst"]["labels"] == 0
    assert report["worst"]["depth"] <= 1e-6
    assert report["worst"]["normals"] <= 1e-6
    assert report["worst"]["edges"] <= 1e-6


def check_calibration(report):
    """Check what `peer.py calibration` found for a bundle of `calibrated_copy`."""
    assert report["errors"]["corrected"] <= 2e-6
    assert report["errors"]["network"] > 0.01
    assert json.loads(report["parameters"]["class_names"]) == report["classes"]
    assert json.loads(report["parameters"]["depth_calibration"]) == {"scale": 1.3, "offset": -0.25}


def test_depth_is_calibrated_and_the_configuration_says_so(triton, small_bundle, tmp_path):
    bundle = calibrated_copy(small_bundle, tmp_path / "bundle")
    with triton.served(bundle) as server:
        check_calibration(triton.peer("calibration", bundle, "http", server.http))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_eight_clients_get_the_runtimes_results(triton, server, small_bundle, protocol):
    report = triton.peer("parity", small_bundle, protocol, server.port(protocol), 8, 64, "160x120")
    check_parity(report, 64)


def test_a_request_may_hold_several_frames(triton, server, small_bundle):
    report = triton.peer("parity", small_bundle, "grpc", server.grpc, 2, 8, "80x60", "m2h", 3)
    check_parity(report, 8)


def test_metrics_show_that_frames_were_batched(triton, server, small_bundle):
    before = metrics(server)
    triton.peer("parity", small_bundle, "http", server.http, 8, 40, "64x48")
    after = metrics(server)
    frames, runs = (after[name] - before[name] for name in ("nv_inference_count", "nv_inference_exec_count"))
    assert frames == 40
    assert runs < 40


def metrics(server) -> dict[str, float]:
    text = urlopen(server.line["metrics"], timeout=PATIENCE).read().decode()
    return {name: float(value) for name, value in re.findall(r'^(\w+)\{model="m2h",version="1"\} (\S+)$', text, re.M)}


def test_bad_requests_get_the_protocols_error_and_the_next_good_one_is_answered(triton, server, small_bundle):
    report = triton.peer("bad", small_bundle, server.http, server.grpc)
    expected = {
        "http: four channels": r"\[400\].*unexpected shape for input 'image'",
        "http: no batch": r"\[400\].*batch-size must be <= 8",
        "http: no pixels": r"\[500\]",
        "http: tiny": r"\[500\][\s\S]*8 x 8 pixels is too small",
        "http: too many": r"\[400\].*batch-size must be <= 8",
        "http: float": r"\[400\].*data-type is 'FP32', but model 'm2h' expects 'UINT8'",
        "http: unknown model": r"\[404\].*unknown model: 'unknown'",
        "grpc: four channels": r"INVALID_ARGUMENT.*unexpected shape for input 'image'",
        "grpc: no batch": r"INVALID_ARGUMENT.*batch-size must be <= 8",
        "grpc: no pixels": "INTERNAL",
        "grpc: tiny": r"INTERNAL[\s\S]*8 x 8 pixels is too small",
        "grpc: too many": r"INVALID_ARGUMENT.*batch-size must be <= 8",
        "grpc: float": r"INVALID_ARGUMENT.*data-type is 'FP32', but model 'm2h' expects 'UINT8'",
        "grpc: unknown model": r"NOT_FOUND.*unknown model: 'unknown'",
        "http: noise": r'^HTTP/1.1 (4|5)\d\d [\s\S]*\{"error":',
        "http: no JSON": r'^HTTP/1.1 (4|5)\d\d [\s\S]*\{"error":',
        "http: half a request": "^no answer$",
        "grpc: noise": r"^closed|^\d+ bytes$",
    }
    assert set(report) == set(expected)
    for name, pattern in expected.items():
        assert re.search(pattern, report[name]["said"]), (name, report[name]["said"])
        assert report[name]["next"] <= 1e-6, name


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_killed_client_does_not_affect_other_requests(triton, server, small_bundle, protocol):
    command = [triton.python, PEER, "endless", triton.folder / "endless.json", protocol, server.port(protocol)]
    others = [
        subprocess.Popen(list(map(str, command)), env=triton.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        for other in others:
            assert other.stdout.readline() == "asking\n"
        killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {others[0].pid}; sleep 1; kill -9 {others[1].pid}"])
        report = triton.peer("parity", small_bundle, protocol, server.port(protocol), 4, 120, "64x48")
        killer.wait()
    finally:
        for other in others:
            other.kill()
            other.communicate()
    check_parity(report, 120)


def test_the_server_listens_on_one_address_alone(server):
    for port in (server.http, server.grpc, server.metrics):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
        with pytest.raises(ConnectionRefusedError):  # every address of 127/8 belongs to this machine
            socket.create_connection(("127.0.0.2", port), timeout=PATIENCE)


@pytest.mark.parametrize("door", ["repository/models/m2h/unload", "systemsharedmemory/region/x/register"])
def test_clients_cannot_unload_the_model_or_open_shared_memory(server, door):
    request = Request(f"http://127.0.0.1:{server.http}/v2/{door}", data=b"{}", method="POST")
    with pytest.raises(HTTPError) as error:
        urlopen(request, timeout=PATIENCE)
    assert error.value.code == 403
    assert urlopen(f"http://127.0.0.1:{server.http}/v2/models/m2h/ready", timeout=PATIENCE).status == 200


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_sigterm_under_load_loses_no_accepted_request_and_leaves_nothing(triton, small_bundle, protocol):
    with triton.served(small_bundle) as server:
        group = server.worker_group()
        report = triton.peer("until_refused", protocol, server.port(protocol), 32, server.pid)
        code, said = triton.wait(server)
    assert report["lost"] == []
    assert report["refused"] == 32
    assert report["answered"] >= 32
    assert report["after_sigterm"] > 0
    assert code == 0, said
    assert triton.left_behind(server, group) == []


def test_a_taken_port_is_named_in_one_line_before_anything_starts(triton, server, small_bundle):
    http, _, metrics_port = free_ports()
    second = triton.start(small_bundle, ports=[http, server.grpc, metrics_port])
    _, said = second.process.communicate(timeout=PATIENCE)
    assert second.process.returncode == 2
    assert said.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{server.grpc} for gRPC" in said
    assert "--grpc-port" in said


def test_two_signals_at_once_count_as_one_and_a_later_one_ends_it_at_once(triton, small_bundle):
    with triton.served(small_bundle) as server:
        group = server.worker_group()
        os.kill(server.pid, signal.SIGSTOP)  # both are pending when it continues
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            server.process.send_signal(number)
        assert triton.wait(server)[0] == 0
    assert triton.left_behind(server, group) == []
    with triton.served(small_bundle) as server:
        group = server.worker_group()
        os.kill(group, signal.SIGSTOP)  # a stopped worker delays the shutdown
        server.process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        server.process.send_signal(signal.SIGTERM)
        code, said = triton.wait(server)
    assert code == 2
    assert "requests in flight were dropped" in said
    assert triton.left_behind(server, group) == []


@pytest.mark.parametrize("seconds", [0.0, 2.0, 4.0])
def test_a_signal_during_the_start_leaves_nothing_behind(triton, small_bundle, seconds):
    server = triton.start(small_bundle)
    group = server.worker_group()
    time.sleep(seconds)
    code, said = triton.end(server)
    assert code == 0, said
    assert triton.left_behind(server, group) == []


def kill_one(group, name) -> None:
    from m2h_deploy.serving.processes import group_members

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = [pid for pid, member in group_members(group).items() if member == name]
        if found:
            os.kill(found[0], signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"no {name}")


def test_a_triton_that_dies_during_the_start_gives_a_one_line_error(triton, small_bundle):
    server = triton.start(small_bundle)
    group = server.worker_group()
    kill_one(group, "tritonserver")
    _, said = server.process.communicate(timeout=PATIENCE)
    assert server.process.returncode == 2
    assert re.fullmatch(r"error: Triton did not start: .*\n", said)
    assert triton.left_behind(server, group) == []


@pytest.mark.parametrize("name", ["tritonserver", "triton_python_b"])
def test_a_triton_that_dies_later_gives_a_one_line_error_and_leaves_nothing(triton, small_bundle, name):
    with triton.served(small_bundle) as server:
        group = server.worker_group()
        kill_one(group, name)
        if name == "triton_python_b":  # Triton restarts it or ends: the command must end cleanly
            time.sleep(1)
            code, said = triton.end(server)
        else:
            _, said = server.process.communicate(timeout=PATIENCE)
            code = server.process.returncode
            assert "error: Triton ended on its own" in said
            assert code == 2
    assert triton.left_behind(server, group) == []


def test_the_server_stops_if_the_command_is_killed(triton, small_bundle):
    with triton.served(small_bundle) as server:
        group = server.worker_group()
        server.process.kill()
        server.process.communicate()
    deadline = time.monotonic() + PATIENCE
    while (left := running(triton, server, group)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def running(triton, server, group) -> list[str]:
    """Return what was left behind except files, which no remaining process could remove."""
    return [one for one in triton.left_behind(server, group) if not one.startswith("m2h-serve-")]


def test_a_sensor_bundle_takes_its_cameras_size_only(triton, sensor_bundle):
    with triton.served(sensor_bundle, "--name", "camera", "--max-batch", 4) as server:
        report = triton.peer("parity", sensor_bundle, "http", server.http, 4, 16, "64x48", "camera")
        check_parity(report, 16)
        described = urlopen(f"http://127.0.0.1:{server.http}/v2/models/camera", timeout=PATIENCE).read().decode()
    assert '"shape":[-1,48,64,3]' in described


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_two_thousand_requests_of_eight_clients_lose_none(triton, server, small_bundle, protocol):
    report = triton.peer("parity", small_bundle, protocol, server.port(protocol), 8, 2000, "160x120")
    check_parity(report, 2000)
