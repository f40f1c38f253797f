"""A bundle in Triton: dynamic batching against single frames, over HTTP and gRPC, and the runtime without a server.

    serving/bin/python benchmarks/serving.py bundle --requests 2000 --json serving.json

Needs an interpreter that can serve (docs/serving.md) with tritonclient. Two servers run all the time, one that batches
and one that takes single frames; rounds go through all ways in turns, so that other load on the machine affects all of
them. Clients are threads with one connection each that send the next request as soon as they have a response. Latency
is measured per request by its client; frames per batch come from Triton's metrics. `runtime` is one thread that calls
`Runtime`. The labels of every response are compared with the runtime's: a wrong one counts as lost.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from m2h_deploy import Runtime  # noqa: E402
from m2h_deploy.data.rooms.render import render_room  # noqa: E402

BATCHED, SINGLE = "dynamic batching", "one by one"


@dataclass
class Way:
    """One server with one protocol, or no server, and its measurements."""

    name: str
    protocol: str = ""
    addresses: dict[str, str] = field(default_factory=dict, repr=False)
    latency: list[float] = field(default_factory=list, repr=False)
    seconds: float = 0.0
    lost: int = 0
    frames: float = 0.0
    runs: float = 0.0

    def row(self, alone: float) -> dict[str, Any]:
        """Return the way's figures; `alone` is the rate in frames per second that the ratio is relative to."""
        p50, p99 = (1000 * float(np.percentile(self.latency, q)) for q in (50, 99))
        rate = len(self.latency) / self.seconds
        return {
            "way": self.name,
            "protocol": self.protocol,
            "requests": len(self.latency),
            "lost": self.lost,
            "frames_per_second": rate,
            "ratio": rate / alone if alone else None,
            "p50_ms": p50,
            "p99_ms": p99,
            "frames_per_batch": self.frames / self.runs if self.runs else None,
        }

    @property
    def rate(self) -> float:
        """Frames per second."""
        return len(self.latency) / self.seconds if self.seconds else 0.0


@contextmanager
def served(bundle: Path, *words: object) -> Iterator[dict[str, str]]:
    """Run `m2h-deploy serve` on free ports and yield its addresses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    listen = [f"--{use}-port={port}" for use, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = [sys.executable, "-c", "import cli; cli.main()", "serve", str(bundle), "--json", *listen, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait() or 2)
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def ask(way: Way, images: list[np.ndarray], labels: list[np.ndarray], clients: int, requests: int, outputs: list[str]):
    """Send `requests` requests from `clients` threads, and record latencies, losses and Triton's batch counts."""
    module = importlib.import_module(f"tritonclient.{way.protocol}")
    wanted = [module.InferRequestedOutput(name) for name in outputs]
    lock = threading.Lock()

    def work(number: int) -> None:
        client = module.InferenceServerClient(way.addresses[way.protocol])
        for turn in range(number, requests, clients):
            image = images[turn % len(images)][np.newaxis]
            start = time.perf_counter()
            try:
                tensor = module.InferInput("image", list(image.shape), "UINT8")
                tensor.set_data_from_numpy(image)
                answer = client.infer("m2h", [tensor], outputs=wanted).as_numpy("labels")[0]
            except Exception as error:
                print(f"lost: {error}", file=sys.stderr)
                answer = None
            took = time.perf_counter() - start
            with lock:
                if answer is not None and np.array_equal(answer, labels[turn % len(labels)]):
                    way.latency.append(took)
                else:
                    way.lost += 1

    before, start = _counts(way), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    way.seconds += time.perf_counter() - start
    frames, runs = (after - then for after, then in zip(_counts(way), before, strict=True))
    way.frames, way.runs = way.frames + frames, way.runs + runs


def _counts(way: Way) -> list[float]:
    text = urlopen(way.addresses["metrics"], timeout=30).read().decode()
    names = ("nv_inference_count", "nv_inference_exec_count")
    return [sum(map(float, re.findall(rf"^{name}\{{\S* (\S+)$", text, re.MULTILINE))) for name in names]


def call(way: Way, runtime: Runtime, images: list[np.ndarray], requests: int) -> None:
    """Call the runtime in one thread, without a server."""
    start = time.perf_counter()
    for turn in range(requests):
        begun = time.perf_counter()
        runtime(images[turn % len(images)])
        way.latency.append(time.perf_counter() - begun)
    way.seconds += time.perf_counter() - start


def table(rows: list[dict[str, Any]]) -> str:
    """Format the rows as Markdown."""
    lines = [
        "| way | protocol | requests | lost | frames/s | ratio | p50 ms | p99 ms | frames a batch |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        group = f"{row['frames_per_batch']:.1f}" if row["frames_per_batch"] else ""
        lines.append(
            f"| {row['way']} | {row['protocol']} | {row['requests']} | {row['lost']} | {row['frames_per_second']:.1f} "
            f"| {ratio} | {row['p50_ms']:.1f} | {row['p99_ms']:.1f} | {group} |"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all ways in turns and return their rows."""
    width, height = map(int, options.size.split("x"))
    images = [np.ascontiguousarray(render_room(7, index, height, width).image) for index in range(8)]
    outputs = options.outputs.split(",")
    threads = ["--threads", options.threads] if options.threads else []
    with ExitStack() as stack:
        runtime = stack.enter_context(Runtime.load(options.bundle, threads=options.threads))
        labels = [runtime(image).semantics for image in images]
        batch = ["--max-batch", options.max_batch, "--delay-ms", options.delay_ms]
        servers = {
            BATCHED: stack.enter_context(served(options.bundle, *batch, *threads)),
            SINGLE: stack.enter_context(served(options.bundle, "--max-batch", 1, "--delay-ms", 0, *threads)),
        }
        ways = [Way(name, protocol, servers[name]) for protocol in ("http", "grpc") for name in (BATCHED, SINGLE)]
        alone = Way("runtime")
        for way in ways:
            ask(Way("", way.protocol, way.addresses), images, labels, options.clients, 2 * options.clients, outputs)
        for turn in range(options.rounds):
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                ask(way, images, labels, options.clients, options.requests // options.rounds, outputs)
            call(alone, runtime, images, max(options.requests // options.rounds // 4, 1))
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    single = {way.protocol: way.rate for way in ways if way.name == SINGLE}
    return [*(way.row(single[way.protocol]) for way in ways), alone.row(0)]


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=400, help="of each way")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="640x480", help="of the clients' images")
    parser.add_argument("--outputs", default="labels,depth", help="that clients ask for; labels are compared")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--delay-ms", type=float, default=2.0)
    parser.add_argument("--threads", type=int, help="of each engine")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options)
    print(table(rows))
    if options.json:
        words = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        machine = {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), **words}
        options.json.write_text(json.dumps({"options": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
