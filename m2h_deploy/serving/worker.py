"""The process that serves: the runtime, and Triton through nvidia-pytriton. Started by `m2h_deploy.serving.server`.

    python -m m2h_deploy.serving.worker OPTIONS FOLDER REPORT

OPTIONS is JSON of `ServeOptions`, FOLDER a new folder for Triton's files, REPORT a file descriptor. A line is written
there: `ready`, `failed CODE REASON`, or `ended` when Triton did so by itself. SIGTERM ends the process when the
requests that were accepted are answered.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m2h_deploy.errors import M2HError, first_line
from m2h_deploy.runtime.runtime import Runtime
from m2h_deploy.serving.infer import infer_function, warm_up
from m2h_deploy.serving.options import IMAGE, ServeOptions, output_names
from m2h_deploy.serving.processes import group_members
from m2h_deploy.tasks import TABLE

#: Seconds for requests that were accepted, when told to end.
DRAIN = 30.0

#: Seconds that Triton then waits for connections to close: clients keep idle ones open.
LINGER = 4

#: Name of the process in which Triton runs a model of its Python backend, as far as the system keeps names.
_STUB = "triton_python_b"

_PR_SET_PDEATHSIG = 1


def tensors(runtime: Runtime) -> tuple[list[Any], list[Any]]:
    """The model's input and outputs for Triton, without the batch. A sensor graph takes its camera's size only."""
    from pytriton.model_config import Tensor  # type: ignore[import-not-found,import-untyped]

    spec = runtime.manifest.input
    size = (-1, -1) if runtime.manifest.sensor is None else (spec.height, spec.width)
    outputs = [
        Tensor(name=name, dtype=np.dtype(TABLE[task].dtype).type, shape=(*size, *TABLE[task].components))
        for task, name in output_names(runtime.manifest).items()
    ]
    return [Tensor(name=IMAGE, dtype=np.uint8, shape=(*size, 3))], outputs


def make_server(options: ServeOptions, runtime: Runtime, folder: Path, ended: Callable[[], None]) -> Any:
    """A Triton server, not yet started, with the bundle bound to it. `ended` is called when it ends by itself."""
    from pytriton.model_config import DynamicBatcher, ModelConfig
    from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found,import-untyped]

    class Server(Triton):
        def _on_tritonserver_exit(self, *_: Any) -> None:  # the wheel's own one waits two minutes where it starts
            ended()

    config = TritonConfig(
        http_address=options.host,
        http_port=options.http_port,
        grpc_address=options.host,
        grpc_port=options.grpc_port,
        metrics_address=options.host,
        metrics_port=options.metrics_port,
        exit_timeout_secs=LINGER,
    )
    server = Server(config=config, workspace=folder)
    inputs, outputs = tensors(runtime)
    batcher = DynamicBatcher(max_queue_delay_microseconds=round(options.delay_ms * 1000))
    server.bind(
        options.name,
        infer_function(runtime),
        inputs=inputs,
        outputs=outputs,
        config=ModelConfig(max_batch_size=options.max_batch, batcher=batcher),
    )
    return server


def run(options: ServeOptions, folder: Path, report: Callable[[str], None]) -> None:
    """Serve until SIGTERM. Raises M2HError where the server does not start, or ends on its own."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: end.set())
    with Runtime.load(options.bundle, threads=options.threads, device=options.device) as runtime:
        warm_up(runtime, options.max_batch)
        server = make_server(options, runtime, folder, ended=lambda: report("ended"))
        try:
            server.run()
            report("ready")
            while not end.wait(0.5):
                if not server.is_alive():
                    report("ended")
            drain(options, server)
        finally:
            server.stop()


def drain(options: ServeOptions, server: Any) -> None:
    """Take the model away: Triton refuses new requests from then on, and is done with it when the last one is answered.

    Its own end serves on whatever comes over an open connection, and then cuts that off in the middle.
    """
    from tritonclient.http import InferenceServerClient  # type: ignore[import-not-found,import-untyped]

    with InferenceServerClient(f"{options.host}:{options.http_port}") as client:
        client.unload_model(options.name, headers={"triton-access-token": server.get_access_token()})
    deadline = time.monotonic() + DRAIN
    # Triton forgets the model's name at once; the process that runs it goes with the last request.
    while any(name.startswith(_STUB) for name in group_members(os.getpgrp()).values()):
        if time.monotonic() > deadline:
            raise M2HError(f"requests were still open after {DRAIN:g} s, and were dropped")
        time.sleep(0.05)


def main() -> int:
    end_with_parent()
    values, folder, descriptor = sys.argv[1:]
    fields = json.loads(values)
    options = ServeOptions(**{**fields, "bundle": Path(fields["bundle"])})

    def report(line: str) -> None:
        os.write(int(descriptor), f"{line}\n".encode("utf-8", "backslashreplace"))

    try:
        run(options, Path(folder), report)
    except Exception as error:
        report(f"failed {error.exit_code if isinstance(error, M2HError) else 2} {first_line(error)[:500]}")
        return 2
    return 0


def end_with_parent() -> None:
    """SIGTERM when the parent dies, however it does: nothing else would stop the server then."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
