"""m2h-deploy rooms: synthetic rooms as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.app import app
from cli.console import make_progress, say


@app.command()
def rooms(
    folder: Annotated[Path, typer.Argument(help="Folder to write, in the multi-task layout of NYUv2.")],
    frames: Annotated[int, typer.Option(metavar="N", help="Number of rooms.", min=1)] = 20,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the rooms.")] = 0,
    height: Annotated[int, typer.Option(metavar="PIXELS", help="Height of the images.", min=16)] = 240,
    width: Annotated[int, typer.Option(metavar="PIXELS", help="Width of the images.", min=16)] = 320,
    split: Annotated[Literal["train", "val"], typer.Option(help="Split to write.")] = "val",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier split in the folder.")] = False,
) -> None:
    """Write synthetic rooms with exact labels: data to try commands on, and for tests. An existing split is kept."""
    from m2h_deploy.data.nyuv2_writer import write_multitask_folder

    with make_progress() as progress:
        task = progress.add_task("rooms", total=frames)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        write_multitask_folder(folder, frames, seed, height, width, split=split, progress=advance, overwrite=overwrite)
    say(f"wrote {frames} rooms to {folder}")
