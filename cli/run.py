"""m2h-deploy run: predictions on frames."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import JsonFlag, OverwriteFlag, app
from cli.on_ray import GpusOption, RayOption, WorkersOption, cluster_of, run_on_ray
from m2h_deploy.console import make_progress, print_json, print_values, say, timing_summary
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_folder, make_folder

if TYPE_CHECKING:
    from rich.progress import Progress

    from m2h_deploy import Prediction, Runtime
    from m2h_deploy.sources import Source, SourceFrame


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    source: Annotated[str, typer.Argument(help="Image, folder of images, video file, camera index, or rtsp://...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("out"),
    files: Annotated[bool, typer.Option(help="Write a picture, depth and labels for each frame.")] = True,
    npz: Annotated[bool, typer.Option(help="Also write every output as npz.")] = False,
    video: Annotated[Path | None, typer.Option(help="Write the four tasks as this .mp4.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write a Rerun recording (.rrd).")] = None,
    show: Annotated[bool, typer.Option(help="Show the four tasks in a window; q closes it.")] = False,
    fov: Annotated[float | None, typer.Option(help="Rerun: the camera's horizontal angle of view, degrees.")] = None,
    intrinsics: Annotated[str | None, typer.Option(help="Rerun: the camera as fx,fy,cx,cy in pixels.")] = None,
    limit: Annotated[int | None, typer.Option(help="Stop after this many frames.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    self_test: Annotated[bool, typer.Option(help="Run the engine's self-test first.")] = True,
    plugins: Annotated[list[Path] | None, typer.Option(help="TensorRT: plug-in library to load; may repeat.")] = None,
    ray: RayOption = None,
    workers: WorkersOption = None,
    gpus: GpusOption = 0.0,
    parquet: Annotated[bool, typer.Option(help="Ray: the results as Parquet.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict on frames: a picture, depth (16-bit PNG, millimeters) and labels (PNG) for each.

    Ctrl-C ends a camera; what was written so far is finished and kept. Earlier results of the same names are replaced.
    """
    from m2h_deploy import Runtime
    from m2h_deploy.bundle.manifest import check_outside
    from m2h_deploy.files.names import is_folder
    from m2h_deploy.files.provenance import check_outputs
    from m2h_deploy.sinks.files import check_results
    from m2h_deploy.sources import open_source

    cluster = cluster_of(ray, workers, threads, gpus)
    for place in (output if files else None, video, rerun):
        if place is not None:
            check_outside(bundle, place)
    check_outputs({"mp4": video, "rrd": rerun}, overwrite=overwrite, sources=[source])
    if npz and not files:
        raise M2HError("--npz writes files, which --no-files turns off: give one of the two")
    if cluster is not None:
        _refuse_with_ray(video, rerun, show=show, files=files)
        run_on_ray(cluster, bundle, source, output, parquet=parquet, npz=npz, limit=limit, self_test=self_test,
                   plugins=plugins or [], overwrite=overwrite, as_json=as_json)  # fmt: skip
        return
    if parquet:
        raise M2HError("--parquet applies only to a job on Ray: give --ray local too")
    frames = open_source(source)
    if files and is_folder(Path(source)) and Path(source).resolve() == output.resolve():
        raise M2HError(f"{output} is the source itself: results could overwrite its files; give another --output")
    if files:
        check_folder(output)
        if not overwrite:
            check_results(output, frames.names, npz=npz)
    with ExitStack() as stack:
        runtime = stack.enter_context(
            Runtime.load(bundle, threads=threads, self_test=self_test, plugins=tuple(plugins or ()))
        )
        sinks = _sinks(runtime, frames, video, rerun, show, fov, intrinsics)
        for sink in sinks:
            stack.callback(sink.close)
        if files:
            make_folder(output)
            sinks.append(_Files(output, runtime, npz=npz, overwrite=overwrite))
        summary = _run(runtime, frames, sinks, limit)
    summary["output"] = str(output) if files else None
    written = {"video": video, "rerun": rerun} if summary["read"] > summary["failed"] else {}
    summary |= {name: str(path) for name, path in written.items() if path is not None}
    print_json(summary) if as_json else print_values(summary)
    if summary["interrupted"]:
        raise KeyboardInterrupt
    if summary["failed"]:
        raise M2HError(f"{summary['failed']} of {summary['read']} frames gave no result (named above)")


def _refuse_with_ray(video: Path | None, rerun: Path | None, *, show: bool, files: bool) -> None:
    """Raises M2HError on what needs the frames in their order."""
    if video is not None or rerun is not None or show or not files:
        raise M2HError("--video, --rerun, --show and --no-files need the frames in order: run without --ray")


class _Files:
    """The results of each frame as files."""

    def __init__(self, folder: Path, runtime: Runtime, *, npz: bool, overwrite: bool) -> None:
        self._folder, self._classes, self._npz, self._overwrite = folder, runtime.manifest.classes, npz, overwrite
        self.name = ""

    def add(self, image: Any, prediction: Prediction) -> None:
        from m2h_deploy.sinks.files import check_result, write_prediction

        if not self._overwrite:  # again: a file may have come meanwhile
            check_result(self._folder, self.name, npz=self._npz)
        write_prediction(self._folder, self.name, image, prediction, self._classes, npz=self._npz)


def _sinks(
    runtime: Runtime,
    frames: Source,
    video: Path | None,
    rerun: Path | None,
    show: bool,
    fov: float | None,
    intrinsics: str | None,
) -> list[Any]:
    """Where predictions go beside the files; each refuses what it cannot do before the first frame."""
    from m2h_deploy.camera import ASSUMED_FOV, parse_intrinsics
    from m2h_deploy.sinks.screen import VideoFile, Window

    classes = runtime.manifest.classes
    if rerun is None and (fov is not None or intrinsics is not None):
        raise M2HError("--fov and --intrinsics describe the camera of --rerun FILE.rrd: give that too")
    if fov is not None and intrinsics is not None:
        raise M2HError("give --fov or --intrinsics, not both")
    sinks: list[Any] = []
    if show:
        sinks.append(Window(classes))
    if video is not None:
        sinks.append(VideoFile(video, classes, rate=frames.rate))
    if rerun is not None:
        from m2h_deploy.sinks.rerun import RerunLog

        camera = parse_intrinsics(intrinsics) if intrinsics is not None else None
        if camera is None and fov is None:
            say(f"no --fov or --intrinsics: the cloud assumes a view of {ASSUMED_FOV:g} degrees", "yellow")
        depth_range = runtime.manifest.depth_range
        sinks.append(RerunLog(rerun, classes, depth_range, intrinsics=camera, fov=ASSUMED_FOV if fov is None else fov))
    return sinks


def _run(runtime: Runtime, frames: Source, sinks: list[Any], limit: int | None) -> dict[str, Any]:
    """Every frame through the runtime and into the sinks, until the source, the limit or a person ends it."""
    from m2h_deploy.sources import Skipped

    total = frames.count if limit is None or frames.count is None else min(limit, frames.count)
    timings: list[dict[str, float]] = []
    failed, interrupted = 0, False
    with make_progress() as progress:
        task = progress.add_task("frames", total=total)
        try:
            for frame in frames.read():
                if isinstance(frame, Skipped):
                    progress.console.print(frame.reason, style="yellow", markup=False, soft_wrap=True)
                elif isinstance(frame, M2HError) or not _predict(runtime, frame, sinks, timings, progress):
                    failed += 1
                    if isinstance(frame, M2HError):
                        _complain(progress, frame)
                if timings:
                    mean = sum(sum(t.values()) for t in timings) / len(timings)
                    progress.update(task, description=f"frames  {1000 / mean:.1f} a second")
                progress.advance(task)
                done = limit is not None and len(timings) + failed >= limit
                if done or not all(getattr(sink, "wanted", True) for sink in sinks):
                    break
        except KeyboardInterrupt:
            interrupted = True
    return timing_summary(timings) | {
        "failed": failed,
        "read": len(timings) + failed,
        "interrupted": interrupted,
    }


def _predict(
    runtime: Runtime, frame: SourceFrame, sinks: list[Any], timings: list[dict[str, float]], progress: Progress
) -> bool:
    """Predict one frame; False where the engine refuses it, gives NaN or infinity, or memory runs out."""
    from m2h_deploy.files.images import OutOfMemoryError, enough_memory
    from m2h_deploy.sinks.files import all_finite

    height, width = frame.image.shape[:2]
    try:
        with enough_memory(f"{frame.name}, {width} x {height} pixels"):
            try:
                prediction = runtime(frame.image)
            except M2HError as error:
                text = str(error)
                _complain(progress, M2HError(text if frame.name in text else f"{frame.name}: {text}"))
                return False
            if not all_finite(prediction, runtime.tasks):
                _complain(progress, M2HError(f"{frame.name}: the engine gave NaN or infinity"))
                return False
            for sink in sinks:
                if isinstance(sink, _Files):
                    sink.name = frame.name
                sink.add(frame.image, prediction)
    except OutOfMemoryError as error:
        _complain(progress, error)
        return False
    timings.append(prediction.timings)
    return True


def _complain(progress: Progress, error: M2HError) -> None:
    progress.console.print(str(error), style="red", markup=False, soft_wrap=True)
