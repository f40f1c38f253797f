"""The serving process: the runtime, and Triton through nvidia-pytriton. Started by `m2h_deploy.serving.server`.

    python -m m2h_deploy.serving.worker OPTIONS FOLDER REPORT

OPTIONS is JSON of `ServeOptions`, FOLDER a new folder for Triton's files, REPORT a file descriptor. One of these lines
is written to it: `ready`, `failed CODE REASON`, or `ended` if Triton ends by itself. On SIGTERM the process ends when
the accepted requests are completed.
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
from m2h_deploy.serving.options import IMAGE, ServeOptions, client_parameters, output_names
from m2h_deploy.serving.processes import group_members
from m2h_deploy.tasks import TABLE

#: Seconds for completing accepted requests after SIGTERM.
DRAIN = 30.0

#: Seconds that Triton then waits for connections to close: clients keep idle ones open.
LINGER = 4

#: Name of the process in which Triton runs a model of its Python backend, truncated by the system.
_STUB = "triton_python_b"

_PR_SET_PDEATHSIG = 1


def tensors(runtime: Runtime) -> tuple[list[Any], list[Any]]:
    """Return the model's input and outputs for Triton, without the batch; a sensor graph has its camera's size."""
    from pytriton.model_config import Tensor  # type: ignore[import-not-found,import-untyped]

    spec = runtime.manifest.input
    size = (-1, -1) if runtime.manifest.sensor is None else (spec.height, spec.width)
    outputs = [
        Tensor(name=name, dtype=np.dtype(TABLE[task].dtype).type, shape=(*size, *TABLE[task].components))
        for task, name in output_names(runtime.manifest).items()
    ]
    return [Tensor(name=IMAGE, dtype=np.uint8, shape=(*size, 3))], outputs


def make_server(options: ServeOptions, runtime: Runtime, folder: Path, ended: Callable[[], None]) -> Any:
    """Make a Triton server, not yet started, with the bundle bound to it; `ended` is called if it ends by itself."""
    from pytriton.model_config import DynamicBatcher, ModelConfig
    from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found,import-untyped]

    class Server(Triton):
        def _on_tritonserver_exit(self, *_: Any) -> None:  # the wheel's own method waits two minutes during the start
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
    for model in server._model_manager.models:  # the wheel's own interface has no parameters
        model._get_triton_model_config().backend_parameters.update(client_parameters(runtime.manifest))
    return server


def run(options: ServeOptions, folder: Path, report: Callable[[str], None]) -> None:
    """Serve until SIGTERM. Raises M2HError if the server does not start, or ends by itself."""
    end = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: end.set())
    with Runtime.load(
        options.bundle,
        threads=options.threads,
        device=options.device,
        plugins=options.plugins,
        allow_engine_code=options.allow_engine_code,
    ) as runtime:
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
    """Unload the model: Triton rejects new requests from then on, and unloading ends with the last response.

    Triton's own shutdown continues to accept requests on open connections, and then aborts them.
    """
    from tritonclient.http import InferenceServerClient  # type: ignore[import-not-found,import-untyped]

    with InferenceServerClient(f"{options.host}:{options.http_port}") as client:
        client.unload_model(options.name, headers={"triton-access-token": server.get_access_token()})
    deadline = time.monotonic() + DRAIN
    # Triton removes the model's name immediately; the process that runs it ends with the last request.
    while any(name.startswith(_STUB) for name in group_members(os.getpgrp()).values()):
        if time.monotonic() > deadline:
            raise M2HError(f"requests were still open after {DRAIN:g} s, and were dropped")
        time.sleep(0.05)


def main() -> int:
    """Serve with the options of the command line; return 0, or 2 after reporting a failure."""
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
    """Request SIGTERM from the kernel when the parent ends for any reason: nothing else would stop the server."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
