"""m2h-deploy inspect and doctor: what an artifact, and what this machine, is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.app import JsonFlag, OverwriteFlag, app
from cli.console import out, print_json, print_values, say, status
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.provenance import check_output

headroom_option = partial(typer.Option, rich_help_panel="Headroom: ranges of a float32 graph's tensors")


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder or ONNX file.")],
    other: Annotated[Path | None, typer.Argument(help="A second one, to compare.")] = None,
    headroom: Annotated[
        bool, headroom_option("--headroom", help="Print how far each tensor is from the limits of FP16 and FP8 (E4M3).")
    ] = False,
    data: Annotated[
        str | None, headroom_option(metavar="PLACE", help="Folder, video or NYUv2 to measure on; needed.")
    ] = None,
    frames: Annotated[
        int | None, headroom_option(metavar="N", help="How many frames.", min=1, show_default="8")
    ] = None,
    seed: Annotated[
        int | None, headroom_option(metavar="N", help="Seed that chooses the frames.", show_default="0")
    ] = None,
    picture: Annotated[
        Path | None, headroom_option(metavar="FILE", help="PNG to write: the range of each tensor, by block.")
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Print what a bundle or an ONNX file is, or two of them side by side; with --headroom, the ranges of a graph."""
    if headroom:
        if other is not None:
            raise M2HError(f"--headroom takes one ONNX file: leave out {other}")
        if data is None:
            raise M2HError("--headroom measures on frames: give --data too, a folder of pictures, a video or NYUv2")
        _print_headroom(artifact, data, frames, seed, picture, overwrite=overwrite, as_json=as_json)
        return
    for name, value in (("--data", data), ("--frames", frames), ("--seed", seed), ("--picture", picture)):
        if value is not None:
            raise M2HError(f"{name} applies only to --headroom: give --headroom too, or leave it out")
    try:
        from engines.inspect.inspect import compare, render, render_comparison
        from engines.inspect.inspect import inspect as examine_artifact
    except ModuleNotFoundError as error:
        if error.name != "onnx" or other is not None or not artifact.is_dir():
            raise
        _print_bundle(artifact, as_json)
        return

    report = examine_artifact(artifact)
    if other is None:
        _print_report(report, render, as_json)
        return
    second = examine_artifact(other)
    rows = compare(report, second)
    if as_json:
        print_json({"a": report, "b": second, "comparison": rows})
    else:
        out.print(*render_comparison(rows, str(artifact), str(other)), sep="\n")


def _print_headroom(
    model: Path,
    data: str,
    frames: int | None,
    seed: int | None,
    picture: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure the headroom of a float32 graph, write the picture and print the rest."""
    from engines.inspect.headroom import FRAMES, examine_headroom, render_headroom
    from engines.inspect.headroom_chart import PICTURE, write_picture
    from m2h_deploy.visualize.plots import check_matplotlib

    if picture is not None:
        check_output(picture, "png", overwrite=overwrite, sources=[model])
        check_matplotlib(PICTURE)
    with status("measuring"):
        report = examine_headroom(model, data, frames=frames or FRAMES, seed=seed or 0)
    if picture is not None:
        write_picture(report, picture)
        say(f"wrote {picture}")
    _print_report(report, render_headroom, as_json)


def _print_bundle(path: Path, as_json: bool) -> None:
    """Print a bundle on a device, which has no onnx to read its graph."""
    from m2h_deploy.bundle.describe import describe_bundle, facts

    note = str(missing_extra("onnx", "build", "reading the graph"))
    report = describe_bundle(path)
    report["engine"] = {"kind": report["manifest"]["engine"]["kind"], "note": note}
    print_json(report) if as_json else print_values(facts(report) | {"note": note})


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """List the engine kinds on this machine, what to install for the rest, and known problems."""
    from engines.inspect.doctor import examine, render

    _print_report(examine(), render, as_json)


def _print_report(report: dict[str, Any], render: Callable[[dict[str, Any]], list[Any]], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        for part in render(report):
            out.print(part)
