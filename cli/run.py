"""m2h-deploy run: predictions on frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import (
    DeviceOption,
    EngineCodeFlag,
    JsonFlag,
    OverwriteFlag,
    PluginsOption,
    ThreadsOption,
    app,
    engine_option,
    ray_option,
    result_option,
)
from cli.console import make_progress, print_json, print_values, say
from cli.on_ray import RayGpusOption, RayOption, RayWorkersOption, cluster_of, reporting, tell
from cli.sequence import (
    TOLERANCE,
    IntrinsicsOption,
    OffsetOption,
    PosesOption,
    RateOption,
    ToleranceOption,
    open_posed,
    sequence_option,
)
from cli.view import View, ViewFlag, ViewHostOption, ViewPortOption, ViewStayFlag, keep_view, tell_view, view_of
from m2h_deploy.choices import SelfTestChoice
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder

if TYPE_CHECKING:
    from m2h_deploy import Runtime
    from m2h_deploy.cluster import JobResult
    from m2h_deploy.data.sequence import Sequence
    from m2h_deploy.predict import FrameOutcome
    from m2h_deploy.sinks import Sink
    from m2h_deploy.sources.source import Source
    from m2h_deploy.temporal import TemporalFilter


rerun_option = partial(typer.Option, rich_help_panel="Rerun")


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    source: Annotated[
        str, typer.Argument(help="Image, folder of images, sequence, video file, camera index, or rtsp://...")
    ],
    limit: Annotated[int | None, typer.Option(metavar="N", help="Stop after this many frames.", min=1)] = None,
    output: Annotated[Path, result_option("-o", "--output", metavar="FOLDER", help="Folder for the results.")] = (
        Path("out")
    ),
    files: Annotated[
        bool,
        result_option(
            " /--no-files", help="Do not write a picture, depth and labels for each frame.", show_default=False
        ),
    ] = True,
    npz: Annotated[bool, result_option("--npz", help="Also write every output as npz.")] = False,
    video: Annotated[Path | None, result_option(metavar="FILE", help="Write the four tasks as this .mp4.")] = None,
    show: Annotated[bool, result_option("--show", help="Show the four tasks in a window; q closes it.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
    filtered: Annotated[
        bool, sequence_option("--filter", help="Fuse each frame with the ones before, by the camera's poses.")
    ] = False,
    poses: PosesOption = None,
    tolerance: ToleranceOption = TOLERANCE,
    offset: OffsetOption = 0.0,
    rate: RateOption = None,
    rerun: Annotated[Path | None, rerun_option(metavar="FILE", help="Write a Rerun recording (.rrd).")] = None,
    view: ViewFlag = False,
    view_host: ViewHostOption = None,
    view_port: ViewPortOption = None,
    view_stay: ViewStayFlag = False,
    fov: Annotated[float | None, rerun_option(metavar="DEGREES", help="The camera's horizontal angle of view.")] = None,
    intrinsics: IntrinsicsOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    self_test: Annotated[
        bool | None,
        engine_option(
            "--self-test/--no-self-test",
            help="Run the engine's self-test first, even if it has passed here before.",
            show_default="if it has not passed here",
        ),
    ] = None,
    ray: RayOption = None,
    ray_workers: RayWorkersOption = None,
    ray_gpus: RayGpusOption = 0.0,
    parquet: Annotated[bool, ray_option("--parquet", help="Write the results as Parquet.")] = False,
) -> None:
    """Predict on frames: a picture, depth (16-bit PNG, millimeters) and labels (PNG) for each.

    Ctrl-C ends a camera; what was written so far is finished and kept. Earlier results of the same names are replaced.
    """
    from m2h_deploy import Runtime
    from m2h_deploy.bundle.folder import check_outside
    from m2h_deploy.files.names import is_folder
    from m2h_deploy.files.provenance import check_outputs
    from m2h_deploy.predict import predict_source
    from m2h_deploy.sinks.files import ResultFiles, check_results
    from m2h_deploy.sources.source import open_source

    tested: SelfTestChoice = "auto" if self_test is None else self_test
    cluster = cluster_of(ray, ray_workers, threads, ray_gpus, device)
    for place in (output if files else None, video, rerun):
        if place is not None:
            check_outside(bundle, place)
    check_outputs({"mp4": video, "rrd": rerun}, overwrite=overwrite, sources=[source])
    if rerun is None and not view and fov is not None:
        raise M2HError("--fov describes the camera of --rerun FILE.rrd and of --view: give one of them too")
    if rerun is None and not view and not filtered and intrinsics is not None:
        raise M2HError("--intrinsics describes the camera of --rerun, --view and --filter: give one of them too")
    if not filtered and (poses is not None or offset or rate is not None or tolerance != TOLERANCE):
        raise M2HError("--poses, --tolerance, --offset and --rate are for --filter: give that too")
    if fov is not None and intrinsics is not None:
        raise M2HError("give --fov or --intrinsics, not both")
    if npz and not files:
        raise M2HError("--npz writes files, which --no-files turns off: give one of the two")
    if cluster is not None:
        _refuse_with_ray(video, rerun, show=show or view, files=files, filtered=filtered)
        from m2h_deploy.cluster import predict_folder

        with reporting() as report:
            job = predict_folder(bundle, source, output, cluster=cluster, parquet=parquet, npz=npz, limit=limit,
                                 self_test=tested, plugins=plugins or (),
                                 allow_engine_code=allow_engine_code, overwrite=overwrite,
                                 progress=report.advance, complain=report.complain)  # fmt: skip
        _give_job(job, output, as_json=as_json)
        return
    if parquet:
        raise M2HError("--parquet applies only to a job on Ray: give --ray local too")
    live = view_of(view, view_host, view_port, stay=view_stay)
    temporal = None
    if filtered:
        posed = open_posed(source, poses, intrinsics, offset=offset, rate=rate, tolerance=tolerance)
        temporal, frames = _filter(posed)
    else:
        frames = open_source(source)
    if files and is_folder(Path(source)) and Path(source).resolve() == output.resolve():
        raise M2HError(f"{output} is the source itself: results could overwrite its files; give another --output")
    if files:
        check_folder(output)
        if not overwrite:
            check_results(output, frames.names, npz=npz)
    with ExitStack() as stack:
        runtime = Runtime.load(
            bundle,
            threads=threads,
            device=device,
            self_test=tested,
            plugins=tuple(plugins or ()),
            allow_engine_code=allow_engine_code,
        )
        stack.enter_context(runtime)
        sinks: list[Sink] = []
        for sink in _sinks(runtime, frames, video, rerun, show, live, fov, intrinsics):
            stack.callback(sink.close)  # before the next one is opened, which may fail
            sinks.append(sink)
        if files:
            make_folder(output)
            sinks.append(ResultFiles(output, runtime.manifest.classes, npz=npz, overwrite=overwrite))
        total = frames.count if limit is None or frames.count is None else min(limit, frames.count)
        with frame_progress(total) as progress:
            summary = predict_source(runtime, frames, sinks, temporal=temporal, limit=limit, progress=progress)
        if live is not None and live.stay and not summary.interrupted:
            keep_view(sinks)
    failed = len(summary.failed)
    values = summary.timings | {"failed": failed, "read": summary.read, "interrupted": summary.interrupted}
    values["output"] = str(output) if files else None
    if temporal is not None:
        values |= _filter_problems(temporal)
    written = {"video": video, "rerun": rerun} if summary.read > failed else {}
    values |= {name: str(path) for name, path in written.items() if path is not None}
    print_json(values) if as_json else print_values(values)
    if summary.interrupted:
        raise KeyboardInterrupt
    if failed:
        raise M2HError(f"{failed} of {summary.read} frames gave no result (named above)")


def _give_job(job: JobResult, output: Path, *, as_json: bool) -> None:
    """Print how a job on Ray went. Raise M2HError where frames gave no result."""
    values = job.to_json() | {"output": str(output)}
    if as_json:
        print_json(values)
    else:
        tell(job)
        print_values(values)
    if job.failed:
        count = job.frames + len(job.failed)
        raise M2HError(f"{len(job.failed)} of {count} frames gave no result (named above)")


def _refuse_with_ray(video: Path | None, rerun: Path | None, *, show: bool, files: bool, filtered: bool) -> None:
    """Raise M2HError on what needs the frames in their order."""
    if video is not None or rerun is not None or show or not files or filtered:
        raise M2HError(
            "--video, --rerun, --show, --view, --no-files and --filter need the frames in order: run without --ray"
        )


def _filter(sequence: Sequence) -> tuple[TemporalFilter, Source]:
    """Make the filter of a sequence's camera, and the source of its frames."""
    from m2h_deploy.sources.source import sequence_source
    from m2h_deploy.temporal import TemporalFilter

    if all(moment.pose is None for moment in sequence.moments):
        raise M2HError(
            f"{sequence.folder}: none of the {len(sequence)} frames has a pose: give a trajectory with --poses FILE"
        )
    for line in sequence.skipped:
        say(line, "yellow")
    return TemporalFilter(sequence.intrinsics), sequence_source(sequence)


def _filter_problems(temporal: TemporalFilter) -> dict[str, int]:
    """Tell why frames were not filtered, and return their number and how often the past was dropped."""
    if temporal.unposed:
        say(f"{temporal.unposed} frames have no pose: they are not filtered", "yellow")
    for reason, count in temporal.resets.items():
        say(f"the filter dropped the past {count} times: {reason}", "yellow")
    return {"unfiltered": temporal.unposed, "resets": sum(temporal.resets.values())}


def _sinks(
    runtime: Runtime,
    frames: Source,
    video: Path | None,
    rerun: Path | None,
    show: bool,
    view: View | None,
    fov: float | None,
    intrinsics: str | None,
) -> Iterator[Sink]:
    """Open one by one what predictions go to beside the files; each refuses at once what it cannot do."""
    from m2h_deploy.camera import ASSUMED_FOV, parse_intrinsics
    from m2h_deploy.sinks.screen import VideoFile, Window

    classes, depth_range = runtime.manifest.classes, runtime.manifest.result_range
    camera = parse_intrinsics(intrinsics) if intrinsics is not None else None
    if (rerun is not None or view is not None) and camera is None and fov is None:
        say(f"no --fov or --intrinsics: the cloud assumes a view of {ASSUMED_FOV:g} degrees", "yellow")
    fov = ASSUMED_FOV if fov is None else fov
    if show:
        yield Window(classes)
    if video is not None:
        yield VideoFile(video, classes, rate=frames.rate)
    if rerun is not None:
        from m2h_deploy.sinks.rerun import RerunLog

        yield RerunLog(rerun, classes, depth_range, intrinsics=camera, fov=fov, tasks=runtime.tasks)
    if view is not None:
        from m2h_deploy.sinks.view import LiveView

        live = LiveView(classes, depth_range, host=view.host, port=view.port, intrinsics=camera, fov=fov,
                        tasks=runtime.tasks, complain=lambda line: say(line, "yellow"))  # fmt: skip
        tell_view(view, live.page)
        yield live


@contextmanager
def frame_progress(total: int | None) -> Iterator[Callable[[FrameOutcome], None]]:
    """Show a bar with frames a second on stderr, and the reason of each frame that is skipped or fails."""
    spent, done = 0.0, 0
    with make_progress() as progress:
        task = progress.add_task("frames", total=total)

        def report(outcome: FrameOutcome) -> None:
            nonlocal spent, done
            if outcome.reason:
                style = "red" if outcome.status == "failed" else "yellow"
                progress.console.print(outcome.reason, style=style, markup=False, soft_wrap=True)
            done += outcome.status == "done"
            spent += sum(outcome.timings.values())
            if done:
                progress.update(task, description=f"frames  {1000 * done / spent:.1f} a second")
            progress.advance(task)

        yield report
