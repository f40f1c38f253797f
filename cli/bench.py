"""m2h-deploy bench: latency as a robot sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import EngineDeviceOption, OverwriteFlag, app
from cli.console import err, out, print_json, say
from m2h_deploy.errors import M2HError, missing_extra

if TYPE_CHECKING:
    from m2h_deploy.bundle.folder import Bundle
    from m2h_deploy.profiling import BenchResult, BlockCost
    from m2h_deploy.profiling.bench import Progress


@app.command()
def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, measured interleaved.")],
    duration: Annotated[
        float | None, typer.Option(help="Seconds of each measurement.", show_default="10; LoadGen: its own 600")
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(help="LoadGen: single-stream, multi-stream, offline, server; may repeat.")
    ] = None,
    logs: Annotated[Path | None, typer.Option(help="LoadGen: keep its logs in this folder.")] = None,
    qps: Annotated[float | None, typer.Option(help="LoadGen server: queries per second.")] = None,
    streams: Annotated[int, typer.Option(help="LoadGen multi-stream: frames per query.")] = 8,
    camera: Annotated[float | None, typer.Option(help="Simulate a camera of this many frames per second.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Camera: latest or queue; may repeat.")] = None,
    queue: Annotated[int | None, typer.Option(help="Camera: frames that wait at most under queue.")] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Milliseconds: camera, server.", show_default="one period; server: 100")
    ] = None,
    size: Annotated[str, typer.Option(help="Size of the frames, WIDTHxHEIGHT.")] = "640x480",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    device: EngineDeviceOption = None,
    layers: Annotated[bool, typer.Option(help="Profile layer by layer.")] = True,
    graph: Annotated[
        list[Path] | None, typer.Option(help="ONNX file that a bundle was built from, to count MACs; may repeat.")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Also PyTorch, torch.compile and a plain export.")] = False,
    reference: Annotated[str | None, typer.Option(help="Peers: the checkpoint.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Write the result into the bundles' manifests.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON ('-': stdout).")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write every sample.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with charts.")] = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Measure latency: percentiles, stages, a camera's frame age, LoadGen's scenarios, layers.

    Earlier results of the same kind are replaced by --json, --csv, --html and --logs.
    """
    from m2h_deploy.files.provenance import check_outputs
    from m2h_deploy.profiling import BenchSettings
    from m2h_deploy.profiling import bench as measure

    if peers and reference is None:
        raise M2HError("--peers needs the checkpoint that the bundle was made from: give --reference")
    if camera is None and (policy or queue is not None):
        raise M2HError("--policy and --queue apply only to a camera: give --camera RATE too")
    height, width = _size(size)
    settings = BenchSettings(
        height=height,
        width=width,
        threads=threads,
        device=device,
        duration_s=duration,
        scenarios=tuple(scenario or ()),  # type: ignore[arg-type]
        streams=streams,
        qps=qps,
        camera_rate=camera,
        policies=tuple(policy or ("latest",)),  # type: ignore[arg-type]
        queue=queue,
        deadline_ms=deadline,
        layers=layers,
        logs=logs,
    )
    files = check_outputs({"json": json_file, "csv": csv_file, "html": html}, overwrite=overwrite)
    _check_places(bundles, files, html)
    with ExitStack() as stack:
        make_peers = None
        if peers and reference is not None:
            from engines.peers import open_peers

            make_peers = stack.enter_context(open_peers(reference, threads, lambda text: say(text, "yellow")))
        progress = stack.enter_context(_progress())
        result = measure(
            bundles,
            settings,
            peers=make_peers,
            costs=(lambda bundle: _costs(bundle, graph or [])) if layers else None,
            record=record,
            progress=progress,
        )
    _write(result, json_file, csv_file, html)


def _write(result: BenchResult, json_file: Path | None, csv_file: Path | None, html: Path | None) -> None:
    import json

    from m2h_deploy.files.atomic import write_text
    from m2h_deploy.profiling import to_json, write_csv
    from m2h_deploy.profiling.report.table import print_bench

    values = to_json(result)
    if str(json_file) == "-":
        print_json(values)
    else:
        print_bench(result, out)
    if json_file is not None and str(json_file) != "-":
        write_text(json_file, json.dumps(values, indent=2))
    if csv_file is not None:
        write_csv(result, csv_file)
    if html is not None:
        from m2h_deploy.profiling.report.page import write_page

        write_page(result, html)


def _size(text: str) -> tuple[int, int]:
    """`640x480` as height and width."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise M2HError(f"size '{text}': give WIDTHxHEIGHT, such as 640x480")
    return int(height), int(width)


def _check_places(bundles: list[Path], files: list[Path], html: Path | None) -> None:
    """Raises M2HError where a result could not be written at the end of a long measurement."""
    from m2h_deploy.bundle.folder import check_outside

    for file in files:
        for bundle in bundles:
            check_outside(bundle, file)
    if html is not None:
        from m2h_deploy.visualize.html import check_jinja

        check_jinja()


@contextmanager
def _progress() -> Iterator[Progress]:
    """What is going on, as one bar on stderr."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn twice a second: drawing takes processor time from what is measured.
    with Progress(*columns, console=err, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("loading", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


def _costs(bundle: Bundle, graphs: list[Path]) -> Mapping[str, BlockCost] | None:
    """MACs and bytes by block, from the engine where it is an ONNX file, else from the file that it was built from."""
    from m2h_deploy.profiling import BlockCost

    try:
        from m2h_deploy.onnx_graph.files import read_onnx
        from m2h_deploy.profiling.costs import node_costs, total
    except ModuleNotFoundError as error:
        say(str(missing_extra(str(error.name), "build", "counting MACs and bytes")), "yellow")
        return None
    file = bundle.engine_file if bundle.engine_file.suffix == ".onnx" else _source_of(bundle, graphs)
    if file is None:
        return None
    costs = node_costs(read_onnx(file))
    return {
        block: BlockCost(
            macs=total(cost.macs for cost in costs if cost.block == block),
            nbytes=total(cost.nbytes for cost in costs if cost.block == block),
        )
        for block in dict.fromkeys(cost.block for cost in costs)
    }


def _source_of(bundle: Bundle, graphs: list[Path]) -> Path | None:
    """The graph that the bundle was built from. Raises M2HError where graphs were given and none of them is it."""
    from m2h_deploy.onnx_graph.files import onnx_sha256

    for graph in graphs:
        if onnx_sha256(graph) == bundle.manifest.model.onnx_sha256:
            return graph
    if graphs:
        raise M2HError(f"{bundle.path} was not built from {graphs[0]}: its sha256 differs")
    say(
        f"{bundle.path}: MACs and bytes are not counted: give the ONNX file that it was built from with --graph",
        "yellow",
    )
    return None
