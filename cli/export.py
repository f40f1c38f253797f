"""m2h-deploy export: a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.app import JsonFlag, OverwriteFlag, app, needs
from cli.console import err, out, print_json, say
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.provenance import check_output
from m2h_deploy.tasks import TABLE, TASKS, task_of

if TYPE_CHECKING:
    from export import CheckReport, Sensor
    from m2h_deploy.runtime.preprocess import Normalization


class Windows(str, Enum):
    standard = "standard"
    functions = "functions"


class Sensors(str, Enum):
    uint8 = "uint8"
    nv12 = "nv12"


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Published .pt, .safetensors of m2h-deploy, or the name m2h-tiny.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")] = Path("model.onnx"),
    height: Annotated[int, typer.Option(help="Height of the network's input in pixels.")] = 224,
    width: Annotated[int, typer.Option(help="Width of the network's input in pixels.")] = 224,
    batch: Annotated[int, typer.Option(help="Frames in a batch.")] = 1,
    dynamic_batch: Annotated[bool, typer.Option(help="Leave the batch size free.")] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.", show_default="20")] = None,
    outputs: Annotated[
        str | None,
        typer.Option(help="Outputs to keep, separated by commas.", show_default="depth,semantics,normals,edges"),
    ] = None,
    windows: Annotated[Windows, typer.Option(help="WMCA's partition as plain operators or ONNX functions.")] = (
        Windows.standard
    ),
    form: Annotated[str, typer.Option(help="deploy: rewritten to run faster; reference: as published.")] = "deploy",
    preset: Annotated[
        str | None, typer.Option(help="Normalization of the training: published or imagenet.", show_default="published")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Instead of --preset: mean of R,G,B in units of 0 to 1, such as 0.5,0.5,0.5.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="With --mean: standard deviation of R,G,B.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="JSON list of the class names, or of {name, color}.", metavar="FILE")
    ] = None,
    sensor: Annotated[
        Sensors | None, typer.Option(help="Put pre- and postprocessing into the graph: raw pixels in, results out.")
    ] = None,
    camera_size: Annotated[
        str | None, typer.Option(help="With --sensor: the camera's width x height.", show_default="640x480")
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(help="With --sensor: float32 (meters) or uint16 (millimeters).", show_default="float32"),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Refuse a checkpoint of another variant.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint as ONNX and check the file against it. An earlier export at --output is replaced."""
    check_output(output, "onnx", overwrite=overwrite, sources=[checkpoint])
    with err.status("loading"):
        with needs("export"):
            from export import ExportOptions, export_onnx
            from m2h_deploy.model import load_checkpoint
        from m2h_deploy.data.classes import load_classes

        camera = make_sensor(sensor, camera_size, depth, outputs)
        options: dict[str, Any] = {
            "height": height,
            "width": width,
            "batch": batch,
            "dynamic_batch": dynamic_batch,
            "windows": windows.value,
            "form": form,
            "normalization": choose_normalization(preset, mean, std),
            "classes": load_classes(classes) if classes is not None else None,
            "sensor": camera,
            "tasks": output_names(outputs) if outputs is not None and camera is None else None,
            **({"opset": opset} if opset is not None else {}),
        }
        ExportOptions(**options)  # refuses what makes no graph before the checkpoint is loaded
        model = load_checkpoint(checkpoint)
    if variant is not None and variant != model.config.variant:
        raise M2HError(f"{checkpoint} holds {model.config.variant}, not {variant}")
    try:
        with err.status(f"exporting {model.config.variant} at {width} x {height} and checking it"):
            result = export_onnx(model, output, **options)
    except CheckFailed as error:
        print_check(error.report, as_json)
        raise
    print_check(result.report, as_json)
    say(f"wrote {result.path} ({result.path.stat().st_size / 1e6:.1f} MB)")


def choose_normalization(preset: str | None, mean: str | None, std: str | None) -> Normalization:
    """The normalization that the options name. Raises M2HError where they contradict each other."""
    from m2h_deploy.runtime.preprocess import PRESETS, parse_normalization

    if (mean is None) != (std is None):
        raise M2HError("--mean and --std belong together: give both")
    if mean is not None and std is not None:
        if preset is not None:
            raise M2HError("--preset is a short name for a mean and a std: give it, or --mean and --std, not both")
        return parse_normalization(mean, std)
    if preset is not None and preset not in PRESETS:
        raise M2HError(f"preset '{preset}': choose one of {', '.join(PRESETS)}, or give --mean and --std")
    return PRESETS[preset or "published"]


def make_sensor(
    sensor: Sensors | None, camera_size: str | None, depth: str | None, outputs: str | None
) -> Sensor | None:
    """The sensor that the options describe. Raises M2HError on an option that has no effect without one."""
    if sensor is None:
        for name, value in (("--camera-size", camera_size), ("--depth", depth)):
            if value is not None:
                raise M2HError(f"{name} applies only to a sensor graph: give --sensor uint8 or nv12 too")
        return None
    from export import Sensor, parse_camera_size

    given: dict[str, Any] = {"depth": depth} if depth is not None else {}
    if outputs is not None:
        given["outputs"] = tuple(TABLE[name].result.name for name in output_names(outputs))
    return Sensor(parse_camera_size(camera_size or "640x480"), sensor.value, **given)


def output_names(text: str) -> list[str]:
    """Tasks of a list such as `depth,labels`. Plain graphs give class scores, `semantics`, sensor graphs `labels`:
    both names are taken for both. Raises M2HError on others."""
    names = [name.strip() for name in text.split(",")]
    tasks = [task_of(name) for name in names]
    unknown = [name for name, task in zip(names, tasks, strict=True) if task not in TASKS]
    if unknown:
        raise M2HError(f"output '{unknown[0]}': choose from {', '.join(TASKS)}")
    return tasks


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
