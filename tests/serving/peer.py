"""What talks to a served bundle, with tritonclient alone: `python peer.py SCENARIO OUT.json WORDS...`.

It runs in the interpreter that M2H_TRITON_PYTHON names, so that the answers it compares with come from the same
libraries as the server's.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from m2h_deploy import Prediction, Runtime
from m2h_deploy.data.rooms import render_room

OUTPUTS = ("labels", "depth", "normals", "edges")
TRITON = {"http": tritonclient.http, "grpc": tritonclient.grpc}


def rooms(count: int, height: int, width: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(render_room(7, index, height, width).image) for index in range(count)]


class Client:
    """One connection. Not for two threads at once."""

    def __init__(self, protocol: str, port: str, model: str = "m2h") -> None:
        self._module, self._model = TRITON[protocol], model
        self.raw = self._module.InferenceServerClient(f"127.0.0.1:{port}")

    def __call__(self, images: np.ndarray, dtype: str = "UINT8") -> dict[str, np.ndarray]:
        tensor = self._module.InferInput("image", list(images.shape), dtype)
        tensor.set_data_from_numpy(images)
        answer = self.raw.infer(self._model, [tensor])
        return {name: answer.as_numpy(name) for name in OUTPUTS}


def difference(given: dict[str, np.ndarray], expected: list[Prediction]) -> dict[str, float]:
    """Labels that differ, and the largest error of the others."""
    wanted = {
        "labels": np.stack([one.semantics for one in expected]),
        **{name: np.stack([getattr(one, name) for one in expected]) for name in OUTPUTS[1:]},
    }
    for name, value in wanted.items():
        assert given[name].shape == value.shape, (name, given[name].shape, value.shape)
        assert given[name].dtype == value.dtype, (name, given[name].dtype)
    errors = {name: float(np.abs(given[name] - wanted[name]).max()) for name in OUTPUTS[1:]}
    return {"labels": int((given["labels"] != wanted["labels"]).sum()), **errors}


def parity(bundle: str, protocol: str, port: str, clients: str, requests: str, size: str) -> dict[str, Any]:
    """Requests of `clients` threads, each answer compared with the runtime's in this process."""
    width, height = map(int, size.split("x"))
    images = rooms(8, height, width)
    with Runtime.load(bundle, threads=1) as runtime:
        expected = [runtime(image) for image in images]
    worst: dict[str, float] = dict.fromkeys(OUTPUTS, 0)
    answered, seconds, failures, lock = 0, [], [], threading.Lock()

    def work(number: int) -> None:
        nonlocal answered
        client = Client(protocol, port)
        for turn in range(int(requests) // int(clients)):
            which = (number + turn) % len(images)
            start = time.perf_counter()
            try:
                found = difference(client(images[which][np.newaxis]), [expected[which]])
            except Exception as error:
                with lock:
                    failures.append(str(error))
                continue
            with lock:
                answered += 1
                seconds.append(time.perf_counter() - start)
                for name, value in found.items():
                    worst[name] = max(worst[name], value)

    start = time.perf_counter()
    with ThreadPoolExecutor(int(clients)) as pool:
        list(pool.map(work, range(int(clients))))
    wall = time.perf_counter() - start
    latency = {f"p{q}_ms": 1000 * float(np.percentile(seconds, q)) for q in (50, 99)} if seconds else {}
    return {"answered": answered, "failures": failures, "worst": worst, "rate": answered / wall, **latency}


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {"parity": parity}


if __name__ == "__main__":
    scenario, out, *words = sys.argv[1:]
    Path(out).write_text(json.dumps(SCENARIOS[scenario](*words)))
