"""m2h-deploy inspect and doctor: what an artifact, and what this machine, is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.app import JsonFlag, app
from cli.console import out, print_json, print_values
from m2h_deploy.errors import missing_extra


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder or ONNX file.")],
    other: Annotated[Path | None, typer.Argument(help="A second one, to compare.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a bundle or an ONNX file is, or two of them side by side."""
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
