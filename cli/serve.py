"""m2h-deploy serve: a bundle behind Triton Inference Server."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli.app import DeviceOption, EngineCodeFlag, JsonFlag, OverwriteFlag, PluginsOption, ThreadsOption, app
from cli.console import print_json, say

network_option = partial(typer.Option, rich_help_panel="Network")
batching_option = partial(typer.Option, rich_help_panel="Batching")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the model.")] = "m2h",
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Write Triton's log to this file.")] = None,
    host: Annotated[
        str, network_option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    http_port: Annotated[int, network_option(metavar="PORT", help="For HTTP.")] = 8000,
    grpc_port: Annotated[int, network_option(metavar="PORT", help="For gRPC.")] = 8001,
    metrics_port: Annotated[int, network_option(metavar="PORT", help="For Prometheus' metrics.")] = 8002,
    max_batch: Annotated[int, batching_option(metavar="N", help="Frames that run together at most.")] = 8,
    delay_ms: Annotated[float, batching_option(metavar="MS", help="Time that a frame waits for others.")] = 2.0,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve a bundle over HTTP and gRPC (KServe v2) until Ctrl-C or SIGTERM; accepted requests are answered first.

    Clients send raw pixels: image, uint8 (N, H, W, 3) BGR; they get labels, depth, normals and edges.
    """
    from m2h_deploy.bundle.folder import check_outside
    from m2h_deploy.files.provenance import check_output
    from m2h_deploy.serving.options import ServeOptions
    from m2h_deploy.serving.server import serve as serve_bundle

    if log is not None:
        check_output(log, "log", overwrite=overwrite)
        check_outside(bundle, log)
    options = ServeOptions(
        bundle, name, host, http_port, grpc_port, metrics_port, max_batch, delay_ms, threads=threads, device=device,
        plugins=tuple(plugins or ()), allow_engine_code=allow_engine_code,
    )  # fmt: skip
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
