"""m2h-deploy run: predictions on frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import JsonFlag, app
from m2h_deploy.console import make_progress, print_json, print_values, timing_summary
from m2h_deploy.errors import M2HError
from m2h_deploy.files import make_folder

if TYPE_CHECKING:
    pass


@app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    source: Annotated[str, typer.Argument(help="Image, folder of images, video file, or camera index.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results.")] = Path("out"),
    npz: Annotated[bool, typer.Option(help="Also write every output as npz.")] = False,
    limit: Annotated[int | None, typer.Option(help="Stop after this many frames.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    self_test: Annotated[bool, typer.Option(help="Prove the engine's numbers first.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Predict on frames: a picture, depth (16-bit PNG, millimetres) and labels (PNG) for each."""
    from m2h_deploy import Runtime
    from m2h_deploy.results import write_prediction
    from m2h_deploy.sources import Skipped, open_source

    frames = open_source(source)
    runtime = Runtime.load(bundle, threads=threads, self_test=self_test)
    if Path(source).is_dir() and Path(source).resolve() == output.resolve():
        raise M2HError(f"{output} is the source itself: results could overwrite its files; give another --output")
    make_folder(output)
    total = frames.count if limit is None or frames.count is None else min(limit, frames.count)
    timings: list[dict[str, float]] = []
    failures: list[M2HError] = []
    with make_progress() as progress, runtime:
        task = progress.add_task("frames", total=total)
        for frame in frames.read():
            if isinstance(frame, M2HError):
                failures.append(frame)
                progress.console.print(str(frame), style="red", markup=False, soft_wrap=True)
            elif isinstance(frame, Skipped):
                progress.console.print(frame.reason, style="yellow", markup=False, soft_wrap=True)
            else:
                prediction = runtime(frame.image)
                write_prediction(output, frame.name, frame.image, prediction, runtime.manifest.classes, npz=npz)
                timings.append(prediction.timings)
                mean = sum(sum(t.values()) for t in timings) / len(timings)
                progress.update(task, description=f"frames  {1000 / mean:.1f} a second")
            progress.advance(task)
            if limit is not None and len(timings) + len(failures) >= limit:
                break
    summary = timing_summary(timings) | {"output": str(output), "failed": len(failures)}
    print_json(summary) if as_json else print_values(summary)
    if failures:
        raise M2HError(f"{len(failures)} of {len(timings) + len(failures)} frames could not be read (named above)")
