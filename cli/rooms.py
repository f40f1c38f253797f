"""m2h-deploy rooms: synthetic rooms as a data set."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.app import app
from cli.console import make_progress, say
from m2h_deploy.errors import M2HError

sequence_option = partial(typer.Option, rich_help_panel="Sequence")


@app.command()
def rooms(
    folder: Annotated[
        Path, typer.Argument(help="Folder to write, in the multi-task layout of NYUv2 or, a sequence, of TUM RGB-D.")
    ],
    frames: Annotated[
        int | None,
        typer.Option(metavar="N", help="Number of rooms or frames.", min=1, show_default="20; with --sequence 200"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the rooms.")] = 0,
    height: Annotated[int, typer.Option(metavar="PIXELS", help="Height of the images.", min=16)] = 240,
    width: Annotated[int, typer.Option(metavar="PIXELS", help="Width of the images.", min=16)] = 320,
    fov: Annotated[
        float | None,
        typer.Option(metavar="DEGREES", help="Horizontal field of view.", show_default="NYUv2's, 63.3"),
    ] = None,
    split: Annotated[Literal["train", "val"] | None, typer.Option(help="Split to write.", show_default="val")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier split or sequence in the folder.")
    ] = False,
    sequence: Annotated[
        bool, sequence_option("--sequence", help="Write one room along a camera path, with poses and the surface.")
    ] = False,
    rate: Annotated[
        float | None, sequence_option(metavar="HZ", help="Images per second, 0.1 to 240.", show_default="10")
    ] = None,
    blur: Annotated[bool, sequence_option("--blur", help="Add motion blur.")] = False,
    exposure: Annotated[bool, sequence_option("--exposure", help="Change the exposure slowly.")] = False,
    noise: Annotated[bool, sequence_option("--noise", help="Add more sensor noise.")] = False,
) -> None:
    """Write synthetic rooms with exact labels: data to try commands on, and for tests. An existing split is kept.

    With --sequence, the frames show one room from a camera that moves, with its poses and the exact surface as a mesh.
    """
    from m2h_deploy.data.nyuv2_writer import write_multitask_folder
    from m2h_deploy.data.rooms.render import Rooms
    from m2h_deploy.data.rooms.walk import Effects, RoomWalk
    from m2h_deploy.data.sequence_writer import write_sequence

    given = {"--rate": rate is not None, "--blur": blur, "--exposure": exposure, "--noise": noise}
    for name, used in given.items():
        if used and not sequence:
            raise M2HError(f"{name} applies only to a sequence: give --sequence too")
    if sequence and split is not None:
        raise M2HError("--split applies only to single rooms: leave it or --sequence out")
    count = frames or (200 if sequence else 20)
    with make_progress() as progress:
        task = progress.add_task("frames" if sequence else "rooms", total=count)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if sequence:
            effects = Effects(blur, exposure, noise)
            walk = RoomWalk(count, seed, 10.0 if rate is None else rate, height, width, effects, fov)
            write_sequence(folder, walk, progress=advance, overwrite=overwrite)
        else:
            rooms = Rooms(count, seed, height, width, fov)
            write_multitask_folder(folder, rooms, split=split or "val", progress=advance, overwrite=overwrite)
    say(f"wrote {count} frames of a sequence to {folder}" if sequence else f"wrote {count} rooms to {folder}")
