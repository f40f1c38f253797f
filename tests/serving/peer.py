"""Clients of a served bundle, with tritonclient alone: `python peer.py SCENARIO OUT.json WORDS...`.

It runs in the interpreter that M2H_TRITON_PYTHON names, so that the answers it compares with come from the same
libraries as the server's.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from m2h_deploy import Prediction, Runtime
from m2h_deploy.data.rooms.render import render_room

OUTPUTS = ("labels", "depth", "normals", "edges")

#: Seconds that the slowest machine may take for one answer.
PATIENCE = 300.0

TRITON = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def rooms(count: int, height: int, width: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(render_room(7, index, height, width).image) for index in range(count)]


class Client:
    """One connection. Not thread-safe."""

    def __init__(self, protocol: str, port: str, model: str = "m2h") -> None:
        self._module, self._model = TRITON[protocol], model
        # By default the HTTP client times out after a minute, and the gRPC client never does.
        limits = {"connection_timeout": PATIENCE, "network_timeout": PATIENCE} if protocol == "http" else {}
        self.raw = self._module.InferenceServerClient(f"127.0.0.1:{port}", **limits)

    def __call__(self, images: np.ndarray, dtype: str = "UINT8") -> dict[str, np.ndarray]:
        tensor = self._module.InferInput("image", list(images.shape), dtype)
        tensor.set_data_from_numpy(images)
        answer = self.raw.infer(self._model, [tensor])
        return {name: answer.as_numpy(name) for name in OUTPUTS}


def difference(given: dict[str, np.ndarray], expected: list[Prediction]) -> dict[str, float]:
    """Return the number of labels that differ, and the largest error of the other outputs."""
    wanted = {
        "labels": np.stack([one.semantics for one in expected]),
        **{name: np.stack([getattr(one, name) for one in expected]) for name in OUTPUTS[1:]},
    }
    for name, value in wanted.items():
        assert given[name].shape == value.shape, (name, given[name].shape, value.shape)
        assert given[name].dtype == value.dtype, (name, given[name].dtype)
    errors = {name: float(np.abs(given[name] - wanted[name]).max()) for name in OUTPUTS[1:]}
    return {"labels": int((given["labels"] != wanted["labels"]).sum()), **errors}


def parity(
    bundle: str, protocol: str, port: str, clients: str, requests: str, size: str, model: str = "m2h", batch: str = "1"
) -> dict[str, Any]:
    """Send requests from `clients` threads, and compare each answer with the runtime's in this process."""
    width, height = map(int, size.split("x"))
    images = rooms(8, height, width)
    with Runtime.load(bundle, threads=1) as runtime:
        expected = [runtime(image) for image in images]
    worst: dict[str, float] = dict.fromkeys(OUTPUTS, 0)
    seconds: list[float] = []
    failures: list[str] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        client = Client(protocol, port, model)
        for turn in range(int(requests) // int(clients)):
            which = [(number + turn + place) % len(images) for place in range(int(batch))]
            start = time.perf_counter()
            try:
                answer = client(np.stack([images[index] for index in which]))
            except Exception as error:
                with lock:
                    failures.append(str(error))
                continue
            took = time.perf_counter() - start
            found = difference(answer, [expected[index] for index in which])
            with lock:
                seconds.append(took)
                for name, value in found.items():
                    worst[name] = max(worst[name], value)

    with ThreadPoolExecutor(int(clients)) as pool:
        list(pool.map(work, range(int(clients))))
    latency = {f"p{q}_ms": 1000 * float(np.percentile(seconds, q)) for q in (50, 99)} if seconds else {}
    return {"answered": len(seconds), "failures": failures, "worst": worst, **latency}


def calibration(bundle: str, protocol: str, port: str, model: str = "m2h") -> dict[str, Any]:
    """Compare the server's depth with the network's own depth and a correction of it; return the configuration too."""
    image = rooms(1, 48, 64)[0]
    with Runtime.load(bundle, threads=1, calibrated=False) as runtime:
        network = runtime(image).depth
    client = Client(protocol, port, model)
    depth = client(image[np.newaxis])["depth"][0]
    parameters = client.raw.get_model_config(model)["parameters"]
    values = {key: value["string_value"] for key, value in parameters.items()}
    corrected = np.maximum(np.float32(1.3) * network - np.float32(0.25), 0)
    errors = {"network": float(np.abs(depth - network).max()), "corrected": float(np.abs(depth - corrected).max())}
    return {"errors": errors, "parameters": values, "classes": list(runtime.manifest.classes.names)}


def bad(bundle: str, http_port: str, grpc_port: str) -> dict[str, Any]:
    """Send bad requests, each followed by a valid one; record the answer of each, and the valid one's error."""
    image = rooms(1, 48, 64)[0][np.newaxis]
    with Runtime.load(bundle, threads=1) as runtime:
        expected = [runtime(image[0])]
    good = {"http": Client("http", http_port), "grpc": Client("grpc", grpc_port)}
    unknown = {"http": Client("http", http_port, "unknown"), "grpc": Client("grpc", grpc_port, "unknown")}
    noise = np.random.default_rng(0).bytes(100_000_000)
    attempts: dict[str, Callable[[], Any]] = {}
    for protocol, client in good.items():
        attempts[f"{protocol}: four channels"] = partial(client, np.zeros((1, 48, 64, 4), np.uint8))
        attempts[f"{protocol}: no batch"] = partial(client, np.zeros((48, 64, 3), np.uint8))
        attempts[f"{protocol}: no pixels"] = partial(client, np.zeros((1, 0, 0, 3), np.uint8))
        attempts[f"{protocol}: tiny"] = partial(client, np.zeros((1, 8, 8, 3), np.uint8))
        attempts[f"{protocol}: too many"] = partial(client, np.zeros((9, 48, 64, 3), np.uint8))
        attempts[f"{protocol}: float"] = partial(client, np.zeros((1, 48, 64, 3), np.float32), "FP32")
        attempts[f"{protocol}: unknown model"] = partial(unknown[protocol], image)
    attempts["http: noise"] = partial(_post, http_port, noise, len(noise))
    attempts["grpc: noise"] = partial(_pour, grpc_port, noise)
    attempts["http: half a request"] = partial(_post, http_port, noise[:5000], 10_000, wait=0.5)
    attempts["http: no JSON"] = partial(_post, http_port, b"{" * 1000, 1000)
    report: dict[str, Any] = {}
    for name, attempt in attempts.items():
        try:
            said = str(attempt())
        except Exception as error:
            said = f"error: {type(error).__name__}: {error}"
        worst = [difference(client(image), expected) for client in good.values()]
        report[name] = {"said": said[:2000], "next": max(max(found.values()) for found in worst)}
    return report


def _post(port: str, body: bytes, length: int, wait: float = PATIENCE) -> str:
    """Post a request that states `length` bytes; return the start of the answer, or "no answer" after `wait` s."""
    head = f"POST /v2/models/m2h/infer HTTP/1.1\r\nHost: robot\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(port)), timeout=wait) as connection:
        try:
            connection.sendall(head.encode() + body)
            return connection.recv(4096).decode(errors="replace")
        except TimeoutError:
            return "no answer"
        except ConnectionError as error:
            return f"closed: {error}"


def _pour(port: str, body: bytes) -> str:
    """Send bytes that are not HTTP/2 to the gRPC port."""
    with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE) as connection:
        try:
            connection.sendall(body)
            return f"{len(connection.recv(4096))} bytes"
        except OSError as error:
            return f"closed: {error}"


def until_refused(protocol: str, port: str, clients: str, pid: str) -> dict[str, Any]:
    """Run clients until they are refused, with a SIGTERM to `pid` after each had an answer; record the answers."""
    image = rooms(1, 48, 64)[0][np.newaxis]
    answered, refused, lost, late = 0, 0, [], 0
    told = False
    waiting = set(range(int(clients)))
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal answered, refused, late
        client = Client(protocol, port)
        while True:
            try:
                client(image)
            except Exception as error:
                with lock:
                    if "no available versions" in str(error):
                        refused += 1
                    else:
                        lost.append(f"{type(error).__name__}: {error}")
                return
            with lock:
                answered += 1
                late += told
                waiting.discard(number)

    with ThreadPoolExecutor(int(clients)) as pool:
        works = [pool.submit(work, number) for number in range(int(clients))]
        while waiting and not any(one.done() for one in works):
            time.sleep(0.01)
        os.kill(int(pid), signal.SIGTERM)
        told = True
        for one in works:
            one.result()
    return {"answered": answered, "after_sigterm": late, "refused": refused, "lost": lost}


def endless(protocol: str, port: str) -> dict[str, Any]:
    """Send requests until killed."""
    client, image = Client(protocol, port), rooms(1, 480, 640)[0][np.newaxis]
    print("asking", flush=True)
    while True:
        client(image)


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    "parity": parity,
    "calibration": calibration,
    "bad": bad,
    "until_refused": until_refused,
    "endless": endless,
}


if __name__ == "__main__":
    scenario, out, *words = sys.argv[1:]
    Path(out).write_text(json.dumps(SCENARIOS[scenario](*words)))
