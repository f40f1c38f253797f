"""The m2h-deploy command: parses, calls one function, prints. Results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    from export import CheckReport

app = typer.Typer(
    help="Take an M2H checkpoint to a verified engine and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

#: What a device leaves out on purpose, and the extra that has it.
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors", "onnxruntime"), "export"),
    **dict.fromkeys(("h5py", "scipy"), "data"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class Windows(str, Enum):
    standard = "standard"
    functions = "functions"


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
    preset: Annotated[str, typer.Option(help="Normalisation of the training: published or imagenet.")] = "published",
    variant: Annotated[str | None, typer.Option(help="Refuse a checkpoint of another variant.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a checkpoint as ONNX and check the file against it."""
    with err.status("loading"):
        from export import DEFAULT_OPSET, export_onnx
        from m2h_deploy.model import load_checkpoint

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
                preset=preset,
                on_check=reports.append,
            )
    finally:
        for report in reports:
            _print_check(report, as_json)
    err.print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file of m2h-deploy export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("bundle"),
    engine: Annotated[str, typer.Option(help="onnxruntime.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="CPU threads that the bundle asks for.", min=1)] = None,
) -> None:
    """Build an engine from an exported graph and put it into a bundle."""
    with err.status(f"building {engine}"):
        from engines import build_bundle

        bundle = build_bundle(model, output, engine=engine, precision=precision, threads=threads)
    size = sum((bundle.path / name).stat().st_size for name in bundle.manifest.files) / 1e6
    info = bundle.manifest.engine
    err.print(f"wrote {bundle.path} ({info.kind} {info.version}, {info.precision}, {size:.1f} MB); self-test passed")


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
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise M2HError(f"cannot write to {output}: {error.strerror}") from None
    total = frames.count if limit is None or frames.count is None else min(limit, frames.count)
    timings: list[dict[str, float]] = []
    failures: list[M2HError] = []
    with _progress() as progress, runtime:
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
    summary = _timing_summary(timings) | {"output": str(output), "failed": len(failures)}
    _print_values(summary, as_json)
    if failures:
        raise M2HError(f"{len(failures)} of {len(timings) + len(failures)} frames could not be read (named above)")


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder or ONNX file.")], as_json: JsonFlag = False
) -> None:
    """Print what a bundle or an ONNX file is."""
    from engines.inspect import inspect as examine_artifact

    _print_values(examine_artifact(artifact), as_json)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """List the engine kinds on this machine and what to install for the rest."""
    from engines.doctor import examine

    report = examine()
    if as_json:
        out.print_json(data=report)
        return
    head = {key: value for key, value in report.items() if key != "engines"}
    _print_values(head, False)
    table = Table("", "engine", "version", "details", box=None)
    for engine in report["engines"]:
        mark = "[green]✓[/]" if engine["version"] else "[red]✗[/]"
        table.add_row(mark, engine["kind"], engine["version"] or "-", Text(engine["details"]))
    out.print(table)


@app.command()
def rooms(
    folder: Annotated[Path, typer.Argument(help="Folder to write, in the multi-task layout of NYUv2.")],
    frames: Annotated[int, typer.Option(help="How many rooms.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Other seeds give other rooms.")] = 0,
    height: Annotated[int, typer.Option(min=16)] = 240,
    width: Annotated[int, typer.Option(min=16)] = 320,
    split: Annotated[str, typer.Option(help="Split to write: train or val.")] = "val",
) -> None:
    """Write synthetic rooms with exact labels: data for a first look and for tests."""
    from m2h_deploy.data.writing import write_multitask_folder

    with _progress() as progress:
        task = progress.add_task("rooms", total=frames)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        write_multitask_folder(folder, frames, seed, height, width, split=split, progress=advance)
    err.print(f"wrote {frames} rooms to {folder}")


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for what it makes.")] = Path("quickstart"),
    variant: Annotated[str, typer.Option(help="Network to use.")] = "m2h-tiny",
    frames: Annotated[int, typer.Option(help="How many rooms to look at.", min=1)] = 3,
    as_json: JsonFlag = False,
) -> None:
    """The whole way on the embedded default: checkpoint, ONNX, bundle, predictions, a picture."""
    from engines import build_bundle
    from export import export_onnx
    from m2h_deploy import Runtime
    from m2h_deploy.data.rooms import render_room
    from m2h_deploy.model import build_model, load_checkpoint
    from m2h_deploy.results import write_prediction

    output.mkdir(parents=True, exist_ok=True)
    start = perf_counter()
    reports: list[CheckReport] = []
    with err.status(f"1/3  exporting {variant}"):
        try:
            model, trained = load_checkpoint(variant), True
        except M2HError:
            model, trained = build_model(variant).eval(), False
        onnx_path = export_onnx(model, output / "model.onnx", on_check=reports.append)
    _print_check(reports[0], as_json=False, console=err)
    exported = perf_counter()
    with err.status("2/3  building the bundle"):
        bundle = build_bundle(onnx_path, output / "bundle")
    built = perf_counter()
    timings = []
    with _progress() as progress, Runtime.load(bundle.path) as runtime:
        for index in progress.track(range(frames), description="3/3  predicting"):
            room = render_room(0, index, height=480, width=640)
            prediction = runtime(room.image)
            timings.append(prediction.timings)
            written = write_prediction(output, room.name, room.image, prediction, bundle.manifest.classes)
    weights = "trained weights" if trained else "FRESHLY INITIALISED: its predictions mean nothing"
    summary: dict[str, Any] = {
        "network": f"{variant}, {weights}",
        "export": f"{exported - start:.1f} s",
        "build": f"{built - exported:.1f} s",
        **_timing_summary(timings),
        "picture": str(written[0]),
    }
    _print_values(summary, as_json)


def _timing_summary(timings: list[dict[str, float]]) -> dict[str, Any]:
    """Frames and the mean milliseconds of each stage; the first frame warms up and is left out where there are more."""
    steady = timings[1:] or timings
    if not steady:
        return {"frames": 0}
    means = {f"{stage}_ms": sum(t[stage] for t in steady) / len(steady) for stage in steady[0]}
    return {"frames": len(timings), **means, "frames_per_second": 1000 / sum(means.values())}


def _print_check(report: CheckReport, as_json: bool, console: Console = out) -> None:
    if as_json:
        rows = [
            {"output": d.output, "input": d.input, "max_error": d.max_error, "mean_error": d.mean_error, "psnr": d.psnr}
            for d in report.differences
        ]
        print(json.dumps({"passed": report.passed, "failures": list(report.failures), "differences": rows}))
        return
    table = Table("", "output", "input", "max error", "mean error", "PSNR", box=None)
    for d in report.differences:
        mark = "[green]✓[/]" if d.passed else "[red]✗[/]"
        table.add_row(mark, d.output, d.input, f"{d.max_error:.1e}", f"{d.mean_error:.1e}", f"{d.psnr:.0f} dB")
    console.print(table)


def _print_values(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    table = Table(show_header=False, box=None)
    for key, value in _flatten(values):
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(key.replace("_", " "), Text(text))
    out.print(table)


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values one to a line; long ones are for --json."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, float) else str(value)
            rows.append((prefix + key, text[:77] + "…" if isinstance(text, str) and len(text) > 78 else text))
    return rows


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
    )


def main() -> None:
    """Entry point of the console script: exit code 0 good, 1 a check failed, 2 bad input or environment."""
    try:
        app()
    except M2HError as error:
        err.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        err.print(
            f"error: this command needs {error.name}: pip install 'm2h-deploy[{extra}]'", style="red", markup=False
        )
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(130)


if __name__ == "__main__":
    main()
