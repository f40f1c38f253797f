"""The m2h-deploy command: parses, calls one function, prints. Results on stdout, everything else on stderr."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from m2h_deploy.console import err, make_progress, out, print_json, print_values, say, timing_summary
from m2h_deploy.errors import CheckFailed, M2HError
from m2h_deploy.files import make_folder

if TYPE_CHECKING:
    from export import CheckReport
    from m2h_deploy.parity import LocateResult

app = typer.Typer(
    help="Take an M2H checkpoint to a verified engine and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What a device leaves out on purpose, and the extra that has it.
_EXTRAS = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors", "onnxruntime"), "export"),
    "openvino": "openvino",
    "kornia": "train",
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
    form: Annotated[str, typer.Option(help="reference: as published; deploy: same function, less work.")] = "reference",
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
                form=form,  # type: ignore[arg-type]
                preset=preset,
                on_check=reports.append,
            )
    finally:
        for report in reports:
            _print_check(report, as_json)
    say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file of m2h-deploy export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("bundle"),
    engine: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="CPU threads that the bundle asks for.", min=1)] = None,
    provider: Annotated[str, typer.Option(help="ONNX Runtime: cpu, cuda, tensorrt, nv-tensorrt-rtx.")] = "cpu",
    hint: Annotated[str | None, typer.Option(help="OpenVINO: compute in f32, bf16 or f16.")] = None,
    calibration: Annotated[str | None, typer.Option(help="INT8: folder, video or NYUv2 to calibrate on.")] = None,
    calibration_frames: Annotated[int, typer.Option(help="INT8: how many frames.", min=1)] = 64,
    calibrator: Annotated[str, typer.Option(help="INT8: max, entropy or percentile.")] = "max",
    seed: Annotated[int, typer.Option(help="INT8: other seeds choose other frames.")] = 0,
    policy: Annotated[Path | None, typer.Option(help="INT8: JSON with the blocks to quantise and to keep.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="INT8: keep costly blocks in FP16 up to this (dB).")] = None,
    io: Annotated[str, typer.Option(help="Type of inputs and outputs: fp32 or fp16.")] = "fp32",
    target: Annotated[str, typer.Option(help="TensorRT-RTX: 8.6,rtx4090,orin,... or portable.")] = "portable",
    workspace: Annotated[int | None, typer.Option(help="TensorRT: workspace in MB.", min=1)] = None,
    level: Annotated[int | None, typer.Option(help="TensorRT: builder level 0 to 5.")] = None,
    version_compatible: Annotated[bool, typer.Option(help="TensorRT: let later versions run the plan.")] = False,
    strip_weights: Annotated[bool, typer.Option(help="TensorRT: leave the weights beside the plan.")] = False,
    max_batch: Annotated[int, typer.Option(help="TensorRT: largest batch of a free batch.", min=1)] = 4,
    plugins: Annotated[list[Path] | None, typer.Option(help="TensorRT: plug-in library; may repeat.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Keep the FP16 or INT8 graph as this ONNX file.")] = None,
    trtexec: Annotated[bool, typer.Option(help="TensorRT: print the equal trtexec command.")] = False,
) -> None:
    """Build an engine from an exported graph and put it into a bundle."""
    from engines import BuildOptions, Lowering, build_bundle, load_policy, parse_targets

    if trtexec and precision != "fp32" and graph is None:
        raise M2HError(f"trtexec needs the {precision} graph that is compiled: keep it with --graph FILE.onnx")
    if io not in ("fp32", "fp16"):
        raise M2HError(f"io '{io}': choose fp32 or fp16")
    lowering = Lowering(
        frames=calibration,
        count=calibration_frames,
        seed=seed,
        method=calibrator,
        policy=load_policy(policy) if policy else None,
        min_psnr=min_psnr,
        io="fp16" if io == "fp16" else "fp32",
    )
    options = BuildOptions(
        targets=parse_targets(target),
        workspace_mb=workspace,
        level=level,
        version_compatible=version_compatible,
        strip_weights=strip_weights,
        max_batch=max_batch,
        plugins=tuple(plugins or ()),
    )
    say(f"building {engine} in {precision}")
    bundle = build_bundle(
        model,
        output,
        engine=engine,
        precision=precision,
        threads=threads,
        provider=provider,
        hint=hint,  # type: ignore[arg-type]
        lowering=lowering,
        tensorrt=options,
        graph=graph,
    )
    manifest = bundle.manifest
    size = sum((bundle.path / name).stat().st_size for name in manifest.files) / 1e6
    say(f"wrote {bundle.path} ({manifest.engine.kind} {manifest.engine.version}, {precision}, {size:.1f} MB)")
    if manifest.lowering is not None:
        psnr = ", ".join(f"{name} {value:.1f} dB" for name, value in manifest.lowering.psnr.items())
        say(f"PSNR against float32: {psnr}" if psnr else "PSNR against float32: give --calibration to measure it")
        risky = manifest.lowering.weights_beyond_fp16
        if risky:
            say(f"{len(risky)} weights hold values beyond FP16's range: {', '.join(risky[:3])}", "yellow")
    for note in manifest.engine.options.get("notes", ()):
        say(note, "yellow")
    if trtexec and "trtexec" in manifest.engine.options:
        command = str(manifest.engine.options["trtexec"])
        out.print(command.replace("model.onnx", (graph or model).name), markup=False, soft_wrap=True)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    reference: Annotated[str, typer.Option(help="The checkpoint (or its float32 ONNX file).")],
    data: Annotated[Path, typer.Option(help="NYUv2 (.mat or multi-task folder), RGB-D pairs, or pictures.")],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "val",
    limit: Annotated[int | None, typer.Option(help="Use this many frames, evenly spread.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    miou_drop: Annotated[float, typer.Option(help="Gate: points of mIoU.")] = 0.5,
    rmse_increase: Annotated[float, typer.Option(help="Gate: per cent of RMSE.")] = 1.0,
    merr_increase: Annotated[float, typer.Option(help="Gate: degrees of mean angle.")] = 0.3,
    odsf_drop: Annotated[float, typer.Option(help="Gate: points of odsF.")] = 0.5,
    psnr: Annotated[float, typer.Option(help="Gate: least PSNR of each output in dB.")] = 30.0,
    locate: Annotated[bool, typer.Option(help="Name the block where the numbers part.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON ('-': stdout).")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures.")] = None,
) -> None:
    """Compare an engine with its checkpoint on data, task by task; exit 1 when a gate fails."""
    import json

    from m2h_deploy.files import write_text
    from m2h_deploy.parity import Gates, to_json
    from m2h_deploy.parity import verify as compare
    from m2h_deploy.report import print_result, write_html, write_junit

    gates = Gates(miou_drop, rmse_increase, merr_increase, odsf_drop, psnr)
    with make_progress() as progress:
        task = progress.add_task("frames", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        result = compare(
            bundle, reference, data, gates=gates, limit=limit, split=split, threads=threads, progress=advance
        )
    located = _locate(bundle, reference) if locate else None
    values = to_json(result, located)
    if str(json_file) == "-":
        print_json(values)
    else:
        print_result(result, out)
        if located is not None:
            out.print(located.summary, markup=False)
    if json_file is not None and str(json_file) != "-":
        write_text(json_file, json.dumps(values, indent=2))
    if junit is not None:
        write_junit(result, junit)
    if html is not None:
        write_html(result, html, located=located)
    if not result.passed:
        raise CheckFailed(result.summary)


def _locate(bundle_path: Path, reference: str) -> LocateResult:
    """Export the reference as the bundle's graph was exported, and compare the two value by value."""
    from export import export_onnx
    from m2h_deploy.bundle import load_bundle
    from m2h_deploy.model import load_checkpoint
    from m2h_deploy.parity import locate_in_bundle

    bundle = load_bundle(bundle_path)
    if reference.endswith(".onnx"):
        return locate_in_bundle(bundle, reference)
    manifest = bundle.manifest
    with tempfile.TemporaryDirectory(prefix="m2h-locate-") as folder, err.status("exporting the reference"):
        path = export_onnx(
            load_checkpoint(reference),
            Path(folder) / "reference.onnx",
            height=manifest.input.height,
            width=manifest.input.width,
            batch=manifest.input.batch or 1,
            dynamic_batch=manifest.input.batch is None,
            opset=manifest.model.opset,
            tasks=[output.name for output in manifest.outputs],
            windows=manifest.model.windows,  # type: ignore[arg-type]
            form=manifest.model.form,  # type: ignore[arg-type]
        )
        return locate_in_bundle(bundle, path)


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
    if Path(source).is_dir() and Path(source).resolve() == output.resolve():
        raise M2HError(f"{output} is the source itself: results could overwrite its files; give another --output")
    make_folder(output)
    total = frames.count if limit is None or frames.count is None else min(limit, frames.count)
    timings: list[dict[str, float]] = []
    failures: list[M2HError] = []
    with make_progress() as progress, runtime:
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
    summary = timing_summary(timings) | {"output": str(output), "failed": len(failures)}
    print_json(summary) if as_json else print_values(summary)
    if failures:
        raise M2HError(f"{len(failures)} of {len(timings) + len(failures)} frames could not be read (named above)")


@app.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(help="Bundle folder or ONNX file.")],
    other: Annotated[Path | None, typer.Argument(help="A second one, to compare.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Print what a bundle or an ONNX file is, or two of them side by side."""
    from engines.inspect import compare, render, render_comparison
    from engines.inspect import inspect as examine_artifact

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


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """List the engine kinds on this machine, what to install for the rest, and known problems."""
    from engines.doctor import examine, render

    _print_report(examine(), render, as_json)


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

    make_folder(folder)
    with make_progress() as progress:
        task = progress.add_task("rooms", total=frames)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        write_multitask_folder(folder, frames, seed, height, width, split=split, progress=advance)
    say(f"wrote {frames} rooms to {folder}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file that describes the run; see configs/.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in the folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where frames are kept (default: in the folder).")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read or render frames.", min=1)] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Train a network with the paper's recipe and evaluate it. Ctrl-C saves the state; go on with --resume."""
    from m2h_deploy.training import run as train_network
    from m2h_deploy.training import table

    if device not in ("auto", "cpu", "cuda"):
        raise M2HError(f"device '{device}': choose auto, cpu or cuda")
    result = train_network(config, output, resume=resume, device=device, cache=cache, workers=workers)
    if as_json:
        print_json(result)
    else:
        out.print(table(result), markup=False)


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

    make_folder(output)
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
    with make_progress() as progress, Runtime.load(bundle.path) as runtime:
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
        **timing_summary(timings),
        "picture": str(written[0]),
    }
    print_json(summary) if as_json else print_values(summary)


def _print_report(report: dict[str, Any], render: Callable[[dict[str, Any]], list[Any]], as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        for part in render(report):
            out.print(part)


def _print_check(report: CheckReport, as_json: bool, console: Any = out) -> None:
    if as_json:
        rows = [
            {"output": d.output, "input": d.input, "max_error": d.max_error, "mean_error": d.mean_error, "psnr": d.psnr}
            for d in report.differences
        ]
        print_json({"passed": report.passed, "failures": list(report.failures), "differences": rows})
        return
    table = Table("", "output", "input", "max error", "mean error", "PSNR", box=None)
    for d in report.differences:
        mark = "[green]✓[/]" if d.passed else "[red]✗[/]"
        table.add_row(mark, d.output, d.input, f"{d.max_error:.1e}", f"{d.mean_error:.1e}", f"{d.psnr:.0f} dB")
    console.print(table)


def main() -> None:
    """Entry point of the console script: exit code 0 good, 1 a check failed, 2 bad input or environment."""
    try:
        app()
    except M2HError as error:
        say(f"error: {error}", "red")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        err.print(
            f"error: this command needs {error.name}: pip install 'm2h-deploy[{extra}]'", style="red", markup=False
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
