"""m2h-deploy tune: the fastest engine of this machine that passes the accuracy gates."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from cli.app import JsonFlag, app, needs
from cli.console import err, make_progress, out, print_json, say
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.version import __version__

if TYPE_CHECKING:
    from engines.tune.result import TuneResult

gate_option = partial(typer.Option, rich_help_panel="Gates: how much worse the engine may be")
frames_option = partial(typer.Option, rich_help_panel="Frames")


@app.command()
def tune(
    model: Annotated[
        str, typer.Argument(help="Checkpoint, the name m2h-tiny, or the float32 ONNX file of m2h-deploy export.")
    ],
    data: Annotated[
        Path, typer.Option(metavar="PLACE", help="Data set (NYUv2, ...) or a folder of pictures from your camera.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Bundle of the winner.")] = (
        Path("best")
    ),
    engine: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Try only this engine; may repeat.", show_default="all that run here"),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", help="Begin nothing new after this time.", show_default="no limit"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed that chooses the frames.")] = 0,
    calibration_frames: Annotated[int, frames_option(metavar="N", help="To calibrate INT8 on.", min=4)] = 16,
    search_frames: Annotated[int, frames_option(metavar="N", help="To find the policy on.", min=1)] = 6,
    check_frames: Annotated[int, frames_option(metavar="N", help="To judge the gates on.", min=8)] = 32,
    miou_drop: Annotated[float, gate_option(metavar="POINTS", help="Largest drop of mIoU.")] = 0.5,
    rmse_increase: Annotated[float, gate_option(metavar="PERCENT", help="Largest increase of RMSE.")] = 1.0,
    merr_increase: Annotated[float, gate_option(metavar="DEGREES", help="Largest increase of the mean angle.")] = 0.3,
    odsf_drop: Annotated[float, gate_option(metavar="POINTS", help="Largest drop of odsF.")] = 0.5,
    psnr: Annotated[float, gate_option(metavar="DB", help="Lowest PSNR of each output.")] = 30.0,
    as_json: JsonFlag = False,
) -> None:
    """Build every engine and precision that this machine runs, measure them, and keep the best as a bundle.

    The best is the fastest that passes every gate of verify, on frames that calibration did not see. What was measured
    is kept in FOLDER.tune, with a page: the same command resumes a run that was stopped.
    """
    with needs("build"):
        from engines.tune.candidates import candidates_here
        from engines.tune.frames import Counts, divide
        from engines.tune.tune import LATE, TuneSettings, work_folder
        from engines.tune.tune import tune as choose
    from m2h_deploy.parity import Gates

    settings = TuneSettings(
        engines=tuple(engine) if engine else None,
        counts=Counts(calibration_frames, search_frames, check_frames),
        seed=seed,
        gates=Gates(miou_drop, rmse_increase, merr_increase, odsf_drop, psnr),
        budget_minutes=budget,
    )
    source = Path(model)
    if source.suffix != ".onnx":
        # Bad input is refused before the export, which takes longer.
        candidates_here(settings.engines)
        divide(data, settings.counts, seed)
        source = _export(model, output)
    with make_progress() as bar:
        task = bar.add_task("preparing", total=100)

        def show(what: str, share: float) -> None:
            bar.update(task, description=what, completed=100 * share)

        try:
            result = choose(source, data, output, settings, progress=show, say=lambda line: say(line, "dim"))
        except KeyboardInterrupt:
            say(f"stopped: what was measured is in {work_folder(output)}; the same command resumes it")
            raise
    if as_json:
        print_json(result.to_json())
    else:
        print_result(result)
    page = work_folder(output) / "index.html"
    if page.is_file():
        say(f"the table with pictures is {page}")
    if result.winner is None:
        judged = [row for row in result.rows if row.parity is not None]
        if not judged:
            reasons = "; ".join(dict.fromkeys(str(row.obstacle) for row in result.rows))
            raise M2HError(f"no candidate could be judged: {reasons}")
        raise CheckFailed("no candidate passes every gate: relax the gates, or judge more frames (--check-frames)")
    say(f"wrote {output}")
    if any(row.obstacle == LATE for row in result.rows):
        say("the budget was used up before everything was measured: the same command goes on", "yellow")


def _export(checkpoint: str, output: Path) -> Path:
    """Export a checkpoint into the work folder, unless an earlier run did."""
    from engines.tune.tune import work_folder
    from m2h_deploy.bundle.folder import check_bundle_place
    from m2h_deploy.files.atomic import make_folder

    with needs("export"):
        from export import export_onnx
        from m2h_deploy.model import load_checkpoint
        from m2h_deploy.model.checkpoint import weights_digest
    model = load_checkpoint(checkpoint)
    check_bundle_place(output)
    file = make_folder(work_folder(output)) / f"{model.config.variant}-{weights_digest(model)[:8]}-{__version__}.onnx"
    if not file.is_file():
        with err.status(f"exporting {checkpoint}"):
            export_onnx(model, file)
    return file


def print_result(result: TuneResult) -> None:
    """Print the table, the fastest first, and the winner in one line."""
    from engines.tune.result import CHANGES

    winner = result.winner
    table = Table(
        Column("engine", no_wrap=True), "MB", "ms", "times as fast", "thr.", *CHANGES.values(), "gates", box=None
    )
    for row in sorted(result.rows, key=lambda row: -row.ratio):
        style = "bold green" if row is winner else None if row.passed else "dim"
        table.add_row(*row.cells, style=style)
    out.print(table)
    for entry in result.skipped:
        say(f"skipped {entry['name']}: {entry['reason']}", "dim")
    if winner is None:
        return
    threads = "" if winner.threads is None else f" with {winner.threads} thread{'s' * (winner.threads > 1)}"
    out.print(
        f"{winner.name}{threads}: {winner.ratio:.2f} times as fast as {result.baseline}, passes every gate on "
        f"{result.frames} frames ({result.minutes:.0f} minutes, {result.processor})",
        markup=False,
        soft_wrap=True,
    )
