"""m2h-deploy bench: measure latency."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cli.app import (
    DeviceOption,
    EngineCodeFlag,
    JsonFlag,
    OverwriteFlag,
    PluginsOption,
    RecordFlag,
    ThreadsOption,
    app,
    result_option,
)
from cli.console import err, out, print_json, say
from m2h_deploy.choices import QueuePolicy, Scenario
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from m2h_deploy.profiling.bench import Progress


class QueuePolicyName(str, Enum):
    """`QueuePolicy` as Typer wants it where an option may repeat."""

    latest = "latest"
    queue = "queue"


class ScenarioName(str, Enum):
    """`Scenario` as Typer wants it where an option may repeat."""

    single_stream = "single-stream"
    multi_stream = "multi-stream"
    offline = "offline"
    server = "server"


camera_option = partial(typer.Option, rich_help_panel="Camera")
loadgen_option = partial(typer.Option, rich_help_panel="MLPerf LoadGen")
compare_option = partial(typer.Option, rich_help_panel="Comparison and layers")


@app.command()
def bench(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle folders, measured interleaved.")],
    duration: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Duration of each measurement.", show_default="10; LoadGen: its own 600"),
    ] = None,
    size: Annotated[str, typer.Option(metavar="WxH", help="Size of the frames.")] = "640x480",
    deadline: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Deadline of a frame or a query.", show_default="one period; server: 100"),
    ] = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    camera: Annotated[float | None, camera_option(metavar="RATE", help="Simulate a camera of this frame rate.")] = None,
    camera_policy: Annotated[
        list[QueuePolicyName] | None,
        camera_option(metavar="NAME", help="Frames to run: latest or queue; may repeat.", show_default="latest"),
    ] = None,
    camera_queue: Annotated[
        int | None, camera_option(metavar="N", help="Frames that wait at most under queue.", show_default="any")
    ] = None,
    scenario: Annotated[
        list[ScenarioName] | None,
        loadgen_option(metavar="NAME", help="single-stream, multi-stream, offline or server; may repeat."),
    ] = None,
    qps: Annotated[float | None, loadgen_option(metavar="N", help="Server: queries per second.")] = None,
    streams: Annotated[int, loadgen_option(metavar="N", help="Multi-stream: frames per query.")] = 8,
    logs: Annotated[Path | None, loadgen_option(metavar="FOLDER", help="Keep LoadGen's logs in this folder.")] = None,
    peers: Annotated[bool, compare_option("--peers", help="Also PyTorch, torch.compile and a plain export.")] = False,
    reference: Annotated[str | None, compare_option(metavar="FILE", help="Peers: the checkpoint.")] = None,
    layers: Annotated[
        bool, compare_option(" /--no-layers", help="Do not profile layer by layer.", show_default=False)
    ] = True,
    built_from: Annotated[
        list[Path] | None,
        compare_option(metavar="FILE", help="ONNX file of a bundle, to count MACs; may repeat."),
    ] = None,
    csv: Annotated[Path | None, result_option(metavar="FILE", help="Write every sample.")] = None,
    html: Annotated[Path | None, result_option(metavar="FILE", help="Write a page with charts.")] = None,
    record: RecordFlag = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure latency: percentiles, stages, a camera's frame age, LoadGen's scenarios, layers.

    Earlier results of the same kind are replaced by --json, --csv, --html and --logs.
    """
    from m2h_deploy.camera import parse_camera_size
    from m2h_deploy.files.provenance import check_outputs
    from m2h_deploy.profiling import BenchSettings, to_json, write_csv
    from m2h_deploy.profiling import bench as measure
    from m2h_deploy.profiling.report.page import write_page
    from m2h_deploy.profiling.report.table import print_bench

    if peers and reference is None:
        raise M2HError("--peers needs the checkpoint that the bundle was made from: give --reference")
    if camera is None and (camera_policy or camera_queue is not None):
        raise M2HError("--camera-policy and --camera-queue apply only to a camera: give --camera RATE too")
    if camera_queue is not None and QueuePolicyName.queue not in (camera_policy or ()):
        raise M2HError("--camera-queue applies only to the policy queue: give --camera-policy queue too")
    if not scenario and (qps is not None or logs is not None):
        raise M2HError("--qps and --logs apply only to LoadGen: give --scenario too")
    if not scenario and camera is None and deadline is not None:
        raise M2HError("--deadline applies only to a camera or a scenario: give one")
    if reference is not None and not peers:
        raise M2HError("--reference is the checkpoint of --peers: give that too")
    if built_from and not layers:
        raise M2HError("--built-from counts MACs of the layers, which --no-layers turns off")
    width, height = parse_camera_size(size)
    settings = BenchSettings(
        height=height,
        width=width,
        threads=threads,
        device=device,
        plugins=tuple(plugins or ()),
        allow_engine_code=allow_engine_code,
        duration_s=duration,
        scenarios=cast(tuple[Scenario, ...], tuple(name.value for name in scenario or ())),
        streams=streams,
        qps=qps,
        camera_rate=camera,
        policies=cast(tuple[QueuePolicy, ...], tuple(name.value for name in camera_policy or ())) or ("latest",),
        queue=camera_queue,
        deadline_ms=deadline,
        layers=layers,
        graphs=tuple(built_from or ()),
        logs=logs,
    )
    files = check_outputs({"csv": csv, "html": html}, overwrite=overwrite)
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
            record=record,
            progress=progress,
        )
    print_json(to_json(result)) if as_json else print_bench(result, out)
    if csv is not None:
        write_csv(result, csv)
    if html is not None:
        write_page(result, html)


def _check_places(bundles: list[Path], files: list[Path], html: Path | None) -> None:
    """Raise M2HError where a result could not be written at the end of a long measurement."""
    from m2h_deploy.bundle.folder import check_outside

    for file in files:
        for bundle in bundles:
            check_outside(bundle, file)
    if html is not None:
        from m2h_deploy.visualize.html import check_jinja

        check_jinja()


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show the measurement in progress as one bar on stderr."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn twice a second: drawing takes processor time from what is measured.
    with Progress(*columns, console=err, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("loading", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)
