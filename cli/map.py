"""m2h-deploy map: maps of a moving camera's predictions, compared with the true surface."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli.app import DeviceOption, EngineCodeFlag, JsonFlag, PluginsOption, ThreadsOption, app, needs
from cli.console import make_progress, out, print_json, say
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

if TYPE_CHECKING:
    from m2h_deploy.mapping.result import MapResult

volume_option = partial(typer.Option, rich_help_panel="Map")


@app.command("map")
def make_map(
    bundles: Annotated[
        list[Path] | None, typer.Argument(help="Bundle folders; the first is what the others are compared with.")
    ] = None,
    *,
    sequence: Annotated[Path, typer.Argument(help="Sequence with poses: TUM RGB-D, 7-Scenes, ScanNet, video, images.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder for the results.")] = (
        Path("map")
    ),
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first N frames.", min=2)] = None,
    truth: Annotated[bool, typer.Option("--truth", help="Also map the true depth and labels.")] = False,
    temporal: Annotated[
        bool | None,
        typer.Option("--filter/--no-filter", help="Map only filtered, or only raw predictions.", show_default="both"),
    ] = None,
    poses: PosesOption = None,
    intrinsics: IntrinsicsOption = None,
    surface: Annotated[
        Path | None,
        sequence_option(metavar="FILE", help="Mesh of the true surface (PLY).", show_default="the sequence's own"),
    ] = None,
    tolerance: ToleranceOption = TOLERANCE,
    offset: OffsetOption = 0.0,
    rate: RateOption = None,
    voxel: Annotated[float, volume_option(metavar="METERS", help="Size of a voxel.")] = 0.05,
    truncation: Annotated[float, volume_option(metavar="METERS", help="Truncation of the signed distance.")] = 0.15,
    near: Annotated[float, volume_option(metavar="METERS", help="Smallest depth that is mapped.")] = 0.1,
    far: Annotated[float, volume_option(metavar="METERS", help="Largest depth that is mapped.")] = 5.0,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    allow_engine_code: EngineCodeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fuse the depth and labels of a moving camera into a 3D map, and compare it with the true surface.

    Each bundle is mapped raw and through the temporal filter. Predictions are kept in FOLDER/predictions: the same
    command resumes a run that was stopped, and other settings of the map do not predict again.
    """
    with needs("map"):
        from m2h_deploy.mapping.fuse import VolumeSettings
        from m2h_deploy.mapping.page import write_page
        from m2h_deploy.mapping.run import MapSettings, map_sequence
    from m2h_deploy.backends import BackendOptions
    from m2h_deploy.files.names import require_file
    from m2h_deploy.visualize.html import check_jinja

    check_jinja()
    settings = MapSettings(
        raw=temporal is not True,
        filtered=temporal is not False,
        truth=truth,
        limit=limit,
        volume=VolumeSettings(voxel, truncation, (near, far)),
    )
    options = BackendOptions(threads, device, plugins=tuple(plugins or ()), allow_engine_code=allow_engine_code)
    opened = open_posed(sequence, poses, intrinsics, offset=offset, rate=rate, tolerance=tolerance)
    if surface is not None:
        opened = replace(opened, surface=require_file(surface, "true surface"))
    with make_progress() as bar:
        task = bar.add_task("preparing", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        try:
            result = map_sequence(
                bundles or [],
                opened,
                output,
                settings,
                options=options,
                progress=show,
                say=lambda line: say(line, "yellow"),
            )
        except KeyboardInterrupt:
            say(f"stopped: the predictions are in {output}; the same command resumes the run")
            raise
    write_page(result, output)
    print_json(result.to_json()) if as_json else print_result(result)
    say(f"wrote {output}: map.html has pictures")


def print_result(result: MapResult) -> None:
    """Print the figures of the maps and of the frames, the speeds, and the differences."""
    from m2h_deploy.mapping import tables

    out.print(Text(f"{tables.headline(result)}\n"))
    maps = [tables.map_cells(row, score) for row in result.rows for score in row.maps]
    _print_table(tables.MAP_COLUMNS, maps)
    _print_table(tables.FRAME_COLUMNS, [tables.frame_cells(row) for row in result.rows])
    _print_table(tables.RATE_COLUMNS, [tables.rate_cells(row) for row in result.rows])
    for pair, found in tables.by_pair(result.differences).items():
        out.print(Text(f"{pair}: difference, paired"))
        shown = [difference for difference in found if difference.alignment in (None, "none", "scale")]
        _print_table(tables.DIFFERENCE_COLUMNS, [tables.difference_cells(difference) for difference in shown])


def _print_table(columns: tuple[str, ...], rows: list[list[str]]) -> None:
    if not rows:
        return
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)
    out.print()
