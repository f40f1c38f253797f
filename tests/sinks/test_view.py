"""Test that a view shows a run to a real client, and that no viewer and no failure of the view disturbs the run."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy import M2HError, Prediction
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.sinks import view as view_module
from m2h_deploy.sinks.view import LiveView, check_view, reduce_frame
from m2h_deploy.sinks.view_server import ViewServer
from m2h_deploy.sources.source import SourceFrame
from tests.commands import command_without, environment, launch, mistake

rr = pytest.importorskip("rerun")

TASKS = ("camera/image", "camera/depth", "camera/labels", "camera/normals", "camera/edges")
STAGES = ("preprocess", "inference", "postprocess", "total")


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition holds; fail if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def free(port: int) -> bool:
    try:
        check_view("127.0.0.1", port)
    except M2HError:
        return False
    return True


@pytest.fixture
def port() -> int:
    """Return a port that is free, as the next one is."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found = probe.getsockname()[1]
        if found < 65534 and free(found):
            return int(found)


@pytest.fixture(scope="module")
def classes(tiny_bundle):
    return load_bundle(tiny_bundle).manifest.classes


@pytest.fixture(scope="module")
def frame():
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    depth, labels = np.full((480, 640), 2.0, np.float32), np.ones((480, 640), np.uint8)
    return SourceFrame("noise", noise), Prediction(depth, labels, None, None, {"inference": 3.0})


@pytest.fixture
def pictures(tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        room = render_room(1, index, height=96, width=128)
        cv2.imwrite(str(tmp_path / "pictures" / f"room{index}.png"), room.image)
    return tmp_path / "pictures"


@contextmanager
def client(address: str, recording: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run Rerun's own client, which writes what it receives to a file."""
    from m2h_deploy.sinks.view_server import _program

    with socket.socket() as probe:  # the client listens, too
        probe.bind(("127.0.0.1", 0))
        own = probe.getsockname()[1]
    command = [_program(), address, "--save", str(recording), "--bind", "127.0.0.1", "--port", str(own)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"CI": "1"}
    )
    try:
        until(recording.exists)
        yield process
    finally:
        process.kill()
        process.wait()


def received(recording: Path) -> dict[str, list[dict[str, list[object]]]]:
    """Read the chunks of each entity that a client has received so far."""
    chunk = pytest.importorskip("rerun.chunk")
    found: dict[str, list[dict[str, list[object]]]] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a recording that goes on has no footer
            chunks = chunk.RrdReader(recording).stream().to_chunks()
    except Exception:  # the file ends within a chunk
        return found
    for each in chunks:
        found.setdefault(str(each.entity_path).lstrip("/"), []).append(each.to_record_batch().to_pydict())
    return found


def listening(port: int) -> set[str]:
    """Return the addresses on which a port is listened to, as /proc has them."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {words[1].split(":")[0] for words in lines if words[1].endswith(f":{port:04X}") and words[3] == "0A"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the addresses")
def test_a_client_receives_the_panes_and_the_latency_of_a_run(tiny_bundle, pictures, port, tmp_path):
    options = ("--no-files", "--view", "--view-port", port, "--view-stay", "--fov", 70)
    program = subprocess.Popen(
        launch("run", tiny_bundle, pictures, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with ExitStack() as stack:
        stack.callback(program.kill)
        said = []
        while not said or "the view stays until Ctrl-C" not in said[-1]:
            said.append(program.stderr.readline())
            assert said[-1], said
        address = f"http://127.0.0.1:{port}/?url=rerun%2Bhttp%3A%2F%2F127.0.0.1%3A{port + 1}%2Fproxy"
        assert f"view: {address}\n" in said
        assert not any("anyone" in line for line in said)
        assert listening(port) == listening(port + 1) == {"0100007F"}
        with urllib.request.urlopen(address) as page:
            assert b"Rerun" in page.read()
        recording = tmp_path / "received.rrd"
        stack.enter_context(client(f"rerun+http://127.0.0.1:{port + 1}/proxy", recording))
        wanted = {*TASKS, *(f"latency/{stage}" for stage in STAGES), "rate/frames_per_second"}

        def last_frame() -> bool:
            found = received(recording)
            return all(any(2 in chunk["frame"] for chunk in found.get(entity, [])) for entity in wanted)

        until(last_frame)
        found = received(recording)
        shape = found["camera/labels"][0]["SegmentationImage:format"][0][0]
        assert (shape["width"], shape["height"]) == (128, 96)
        assert {chunk["DepthImage:meter"][0][0] for chunk in found["camera/depth"]} == {1000.0}
        last = {s: c["Scalars:scalars"][0][0] for s in STAGES for c in found[f"latency/{s}"] if c["frame"] == [2]}
        assert last["total"] == pytest.approx(sum(last[stage] for stage in STAGES[:3]))
        assert last["inference"] > 0
        assert "points" not in found
        program.send_signal(signal.SIGINT)
        printed, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    assert "frames             3" in printed
    assert free(port)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ends the server of a process that was killed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_ports_are_free_after_a_run_was_ended(tiny_bundle, tmp_path, port, number):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for _ in range(3000):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    command = launch("run", tiny_bundle, tmp_path / "v.avi", "--no-files", "--view", "--view-port", port, "--fov", 70)
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    while not (line := program.stderr.readline()).startswith("view: "):
        assert line
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in errors
    assert "ERROR" not in errors
    until(lambda: free(port))


def test_a_viewer_that_does_not_read_does_not_hold_up_the_frames(classes, frame, port, tmp_path, monkeypatch):
    monkeypatch.setattr(view_module, "_INTERVAL", 0.0)
    complaints = []
    view = LiveView(classes, (0.1, 10), port=port, complain=complaints.append)
    with client(f"rerun+http://127.0.0.1:{port + 1}/proxy", tmp_path / "r.rrd") as process:
        process.send_signal(signal.SIGSTOP)
        for _ in range(1500):
            view.add(*frame)
            time.sleep(0.001)
        status = Path(f"/proc/{view._server._process.pid}/status")
        if status.exists():
            peak = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
            assert peak < 400  # of 32 MB of data, what is on its way, and Rerun itself
        view.close()
    assert complaints == []
    assert free(port)


def test_a_server_that_hangs_does_not_hold_up_the_frames(classes, frame, port):
    view = LiveView(classes, (0.1, 10), port=port)
    os.kill(view._server._process.pid, signal.SIGSTOP)
    for _ in range(100):
        view.add(*frame)
    view.close()
    view.close()
    assert free(port)


def test_a_server_that_ends_is_reported_once_and_the_frames_go_on(classes, frame, port):
    complaints = []
    view = LiveView(classes, (0.1, 10), port=port, complain=complaints.append)
    view.add(*frame)
    view._server._process.kill()
    view.wait()
    view.add(*frame)
    view.close()
    assert len(complaints) == 1
    assert "the run continues" in complaints[0]
    assert free(port)


def test_pages_of_every_name_of_the_device_may_read_where_every_network_may(port):
    for host, allowed in (("0.0.0.0", "http://robot.local"), ("127.0.0.1", None)):
        server = ViewServer(host, port)
        try:
            asked = http.client.HTTPConnection("127.0.0.1", port + 1, timeout=30)
            headers = {"Origin": f"http://robot.local:{port}", "Access-Control-Request-Method": "POST"}
            asked.request("OPTIONS", "/rerun.sdk_comms.v1alpha1.MessageProxyService/ReadMessages", headers=headers)
            answer = asked.getresponse().getheader("access-control-allow-origin")
            asked.close()
            assert answer == (f"{allowed}:{port}" if allowed else None)
            assert (f"127.0.0.1:{port}" in server.page) == (allowed is None)
        finally:
            server.stop()


def test_mistakes_with_the_options_of_a_view(tiny_bundle, pictures, port):
    run = ("run", tiny_bundle, pictures, "--no-files")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        for number in (port, port + 1):
            said = mistake(*run, "--view", "--view-port", number)
            assert f"127.0.0.1:{port + 1} (" in said
            assert "give another --view-port" in said
    assert "1 to 65534" in mistake(*run, "--view", "--view-port", 65535)
    assert "give an IP address" in mistake(*run, "--view", "--view-host", "robot")
    assert "give another --view-host" in mistake(*run, "--view", "--view-port", port, "--view-host", "192.0.2.77")
    for option in (("--view-host", "0.0.0.0"), ("--view-port", port), ("--view-stay",)):
        assert "are for --view" in mistake(*run, *option)
    assert "between 1 and 179 degrees" in mistake(*run, "--view", "--view-port", port, "--fov", 200)
    assert "are for --filter" in mistake(*run, "--tolerance", 0.1)
    assert free(port)


def test_a_view_without_rerun_names_the_extra(tiny_bundle, pictures):
    command = [*command_without("rerun"), "run", tiny_bundle, pictures, "--no-files", "--view"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 2
    assert "[rerun]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_frame_is_reduced_for_sending():
    room = render_room(0, 1, height=120, width=160)
    labels, edges = room.semantics, room.edges.astype(np.float32)
    image, small = reduce_frame(room.image, Prediction(room.depth, labels, room.normals, edges), 80)
    assert image.shape == (60, 80, 3)
    assert small.depth.dtype == np.uint16
    assert {a.shape[:2] for a in (small.depth, small.semantics, small.normals, small.edges)} == {(60, 80)}
    assert set(np.unique(small.semantics)) <= set(np.unique(labels))
    image, same = reduce_frame(room.image, Prediction(room.depth, None, None, None), 480)
    assert image is room.image
    np.testing.assert_allclose(same.depth / 1000, room.depth, atol=6e-4)
    far = np.full((4, 4), 90.0, np.float32)
    assert reduce_frame(room.image[:4, :4], Prediction(far, None, None, None), 480)[1].depth.max() == 65535
