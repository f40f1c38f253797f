"""m2h-deploy export: a checkpoint as ONNX."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.app import JsonFlag, OverwriteFlag, app, needs
from cli.console import err, out, print_json, say
from m2h_deploy.choices import DepthFormat, Form, LabelsOption, Preset, SensorFormat, Windows
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files.provenance import check_output
from m2h_deploy.tasks import TABLE, TASKS, task_of

if TYPE_CHECKING:
    from export import CheckReport, Sensor
    from m2h_deploy.runtime.preprocess import Normalization


shape_option = partial(typer.Option, rich_help_panel="Shape of the input")
graph_option = partial(typer.Option, rich_help_panel="Graph")
labels_option = partial(typer.Option, rich_help_panel="Labels")
training_option = partial(typer.Option, rich_help_panel="As the network was trained")
pixels_option = partial(typer.Option, rich_help_panel="Raw-pixel graph: camera frames in, results out")


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(help="Published .pt, .safetensors of m2h-deploy, or the name m2h-tiny.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="ONNX file to write.")] = (
        Path("model.onnx")
    ),
    height: Annotated[int, shape_option(metavar="PIXELS", help="Height of the network's input.")] = 224,
    width: Annotated[int, shape_option(metavar="PIXELS", help="Width of the network's input.")] = 224,
    batch: Annotated[int, shape_option(metavar="N", help="Frames in a batch.")] = 1,
    dynamic_batch: Annotated[bool, shape_option("--dynamic-batch", help="Leave the batch size free.")] = False,
    outputs: Annotated[
        str | None,
        graph_option(
            metavar="NAMES",
            help="Outputs to keep, separated by commas.",
            show_default="depth,semantics,normals,edges",
        ),
    ] = None,
    form: Annotated[Form, graph_option(help="deploy: rewritten to run faster; reference: as published.")] = "deploy",
    windows: Annotated[Windows, graph_option(help="WMCA's partition as plain operators or ONNX functions.")] = (
        "standard"
    ),
    opset: Annotated[int | None, graph_option(metavar="N", help="ONNX opset.", show_default="20")] = None,
    preset: Annotated[
        Preset | None, training_option(help="Normalization of the training.", show_default="published")
    ] = None,
    mean: Annotated[
        str | None,
        training_option(metavar="R,G,B", help="Instead of --preset: mean in units of 0 to 1, such as 0.5,0.5,0.5."),
    ] = None,
    std: Annotated[str | None, training_option(metavar="R,G,B", help="With --mean: standard deviation.")] = None,
    classes: Annotated[
        Path | None, training_option(metavar="FILE", help="JSON list of the class names, or of {name, color}.")
    ] = None,
    label_map: Annotated[
        str | None,
        labels_option(metavar="FILE", help="Give labels in this space: a YAML file, or the name nyud20 or hydra."),
    ] = None,
    labels: Annotated[
        LabelsOption, labels_option(help="Argmax, then resize labels; or resize the logits to the image first.")
    ] = "network-resolution",
    sensor: Annotated[
        SensorFormat | None, pixels_option(help="Put pre- and postprocessing into the graph, for these pixels.")
    ] = None,
    camera_size: Annotated[
        str | None,
        pixels_option(metavar="WxH", help="With --sensor: the camera's width x height.", show_default="640x480"),
    ] = None,
    depth_format: Annotated[
        DepthFormat | None,
        pixels_option(help="With --sensor: meters or millimeters.", show_default="float32"),
    ] = None,
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
        from m2h_deploy.label_spaces.read import load_label_space

        camera = make_sensor(sensor, camera_size, depth_format, outputs)
        options: dict[str, Any] = {
            "height": height,
            "width": width,
            "batch": batch,
            "dynamic_batch": dynamic_batch,
            "windows": windows,
            "form": form,
            "normalization": choose_normalization(preset, mean, std),
            "classes": load_classes(classes) if classes is not None else None,
            "sensor": camera,
            "label_map": load_label_space(label_map) if label_map is not None else None,
            "label_resolution": labels.removesuffix("-resolution"),
            "tasks": output_names(outputs) if outputs is not None and camera is None else None,
            **({"opset": opset} if opset is not None else {}),
        }
        ExportOptions(**options)  # refuses what makes no graph before the checkpoint is loaded
        model = load_checkpoint(checkpoint)
    try:
        with err.status(f"exporting {model.config.variant} at {width} x {height} and checking it"):
            result = export_onnx(model, output, **options)
    except CheckFailed as error:
        print_check(error.report, as_json)
        raise
    print_check(result.report, as_json)
    say(f"wrote {result.path} ({result.path.stat().st_size / 1e6:.1f} MB)")


def choose_normalization(preset: Preset | None, mean: str | None, std: str | None) -> Normalization:
    """Return the normalization that the options name. Raise M2HError where they contradict each other."""
    from m2h_deploy.runtime.preprocess import PRESETS, parse_normalization

    if (mean is None) != (std is None):
        raise M2HError("--mean and --std belong together: give both")
    if mean is not None and std is not None:
        if preset is not None:
            raise M2HError("--preset is a short name for a mean and a std: give it, or --mean and --std, not both")
        return parse_normalization(mean, std)
    return PRESETS[preset or "published"]


def make_sensor(
    sensor: SensorFormat | None, camera_size: str | None, depth_format: DepthFormat | None, outputs: str | None
) -> Sensor | None:
    """Return the sensor that the options describe. Raise M2HError on an option that has no effect without one."""
    if sensor is None:
        for name, value in (("--camera-size", camera_size), ("--depth-format", depth_format)):
            if value is not None:
                raise M2HError(f"{name} applies only to a sensor graph: give --sensor uint8 or nv12 too")
        return None
    from export import Sensor
    from m2h_deploy.camera import parse_camera_size

    given: dict[str, Any] = {"depth": depth_format} if depth_format is not None else {}
    if outputs is not None:
        given["outputs"] = tuple(TABLE[name].result.name for name in output_names(outputs))
    return Sensor(parse_camera_size(camera_size or "640x480"), sensor, **given)


def output_names(text: str) -> list[str]:
    """Return the tasks of a list such as `depth,labels`. Raise M2HError on unknown names.

    Plain graphs give class scores, `semantics`, and raw-pixel graphs `labels`: both names are taken for both.
    """
    names = [name.strip() for name in text.split(",")]
    tasks = [task_of(name) for name in names]
    unknown = [name for name, task in zip(names, tasks, strict=True) if task not in TASKS]
    if unknown:
        raise M2HError(f"output '{unknown[0]}': choose from {', '.join(TASKS)}")
    return tasks


def print_check(report: CheckReport, as_json: bool, console: Any = out) -> None:
    """Print the errors of an export's check, one row for each output and input."""
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
