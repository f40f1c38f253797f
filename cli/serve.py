"""m2h-deploy serve: a bundle behind Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import JsonFlag, OverwriteFlag, app
from cli.console import print_json, say


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port for HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus' metrics.")] = 8002,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "m2h",
    max_batch: Annotated[int, typer.Option(help="Frames that run together at most.")] = 8,
    delay_ms: Annotated[float, typer.Option(help="Milliseconds that a frame waits for others.")] = 2.0,
    threads: Annotated[int | None, typer.Option(help="CPU threads of the engine.", min=1)] = None,
    log: Annotated[Path | None, typer.Option(help="Write Triton's log to this file.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve a bundle over HTTP and gRPC (KServe v2) until Ctrl-C or SIGTERM; accepted requests are answered first.

    Clients send raw pixels: image, uint8 (N, H, W, 3) BGR; they get labels, depth, normals and edges.
    """
    from m2h_deploy.files.provenance import check_output
    from m2h_deploy.serving.options import ServeOptions
    from m2h_deploy.serving.server import serve as serve_bundle

    if log is not None:
        check_output(log, "log", overwrite=overwrite)
    options = ServeOptions(
        bundle, name, host, http_port, grpc_port, metrics_port, max_batch=max_batch, delay_ms=delay_ms, threads=threads
    )
    addresses = {
        "model": name,
        "http": f"{host}:{http_port}",
        "grpc": f"{host}:{grpc_port}",
        "metrics": f"http://{host}:{metrics_port}/metrics",
    }

    def ready() -> None:
        say(
            f"serving {bundle} as {name}: HTTP {addresses['http']}, gRPC {addresses['grpc']}, metrics "
            f"{addresses['metrics']}; Ctrl-C ends it"
        )
        if as_json:
            print_json(addresses)

    serve_bundle(options, ready=ready, log=log)
    say("ended; every accepted request was answered")
