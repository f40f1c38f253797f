"""m2h-deploy export: a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.app import JsonFlag, OverwriteFlag, app
from m2h_deploy.console import err, out, print_json, say
from m2h_deploy.errors import M2HError
from m2h_deploy.provenance import check_output

if TYPE_CHECKING:
    from export import CheckReport


class Windows(str, Enum):
    standard = "standard"
    functions = "functions"


class Sensors(str, Enum):
    uint8 = "uint8"
    nv12 = "nv12"


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Published .pt, our .safetensors, or the name m2h-tiny.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    height: Annotated[int, typer.Option(help="Height of the network's input in pixels.")] = 224,
    width: Annotated[int, typer.Option(help="Width of the network's input in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Frames in a batch.")] = 1,
    dynamic_batch: Annotated[bool, typer.Option(help="Leave the batch size free.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.", show_default="20")] = None,
    tasks: Annotated[str, typer.Option(help="Outputs to keep.")] = "depth,semantics,normals,edges",
    windows: Annotated[Windows, typer.Option(help="WMCA's partition as plain operators or ONNX functions.")] = (
        Windows.standard
    ),
    form: Annotated[str, typer.Option(help="deploy: same function, less work; reference: as published.")] = "deploy",
    preset: Annotated[str, typer.Option(help="Normalisation of the training: published or imagenet.")] = "published",
    sensor: Annotated[
        Sensors | None, typer.Option(help="Take raw camera pixels and give finished results: all inside the graph.")
    ] = None,
    camera_size: Annotated[str, typer.Option(help="With --sensor: the camera's width x height.")] = "640x480",
    outputs: Annotated[str, typer.Option(help="With --sensor: outputs to keep.")] = "labels,depth,normals,edges",
    depth: Annotated[str, typer.Option(help="With --sensor: float32 (metres) or uint16 (millimetres).")] = "float32",
    variant: Annotated[str | None, typer.Option(help="Refuse a checkpoint of another variant.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint as ONNX and check the file against it. An earlier export at --output is replaced."""
    check_output(output, "onnx", overwrite=overwrite, sources=[checkpoint])
    with err.status("loading"):
        from export import DEFAULT_OPSET, Sensor, export_onnx, parse_camera_size
        from m2h_deploy.model import load_checkpoint

        camera = None
        if sensor is not None:
            kept = tuple(name.strip() for name in outputs.split(","))
            camera = Sensor(parse_camera_size(camera_size), sensor.value, kept, depth)  # type: ignore[arg-type]
        model = load_checkpoint(checkpoint)
    if variant is not None and variant != model.config.variant:
        raise M2HError(f"{checkpoint} holds {model.config.variant}, not {variant}")
    reports: list[CheckReport] = []
    try:
        with err.status(f"exporting {model.config.variant} at {width} x {height} and checking it"):
            path = export_onnx(
                model,
                output,
                height=height,
                width=width,
                batch=batch,
                dynamic_batch=dynamic_batch,
                opset=opset or DEFAULT_OPSET,
                tasks=[task.strip() for task in tasks.split(",")],
                windows=windows.value,
                form=form,  # type: ignore[arg-type]
                preset=preset,
                sensor=camera,
                on_check=reports.append,
            )
    finally:
        if reports:
            print_check(_joined(reports), as_json)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _joined(reports: list[CheckReport]) -> CheckReport:
    failures = tuple(failure for report in reports for failure in report.failures)
    return type(reports[0])(failures, tuple(row for report in reports for row in report.differences))


def print_check(report: CheckReport, as_json: bool, console: Any = out) -> None:
    if as_json:
        rows = [{"output": d.output, "input": d.input, **asdict(d.difference)} for d in report.differences]
        print_json({"passed": report.passed, "failures": list(report.failures), "differences": rows})
        return
    table = Table("", "output", "input", "max error", "mean error", "of float32", "PSNR", box=None)
    for row in report.differences:
        d = row.difference
        mark = "[green]✓[/]" if d.passed else "[red]✗[/]"
        errors = (f"{error:.1e}" for error in (d.max_error, d.mean_error, d.own_mean_error))
        table.add_row(mark, row.output, row.input, *errors, f"{d.psnr:.0f} dB")
    console.print(table)
