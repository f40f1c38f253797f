"""m2h-deploy build: an ONNX file as a bundle."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cli.app import JsonFlag, OverwriteFlag, app
from cli.console import out, print_json, say, status
from m2h_deploy.backends import KINDS
from m2h_deploy.choices import Calibrator, ComputePrecision, Engine, FloatType, Precision, Provider
from m2h_deploy.errors import M2HError
from m2h_deploy.files.provenance import check_output

if TYPE_CHECKING:
    from m2h_deploy.bundle.folder import Bundle

#: Bytes of a pixel's results from a raw-pixel graph: depth, label, normal and edge.
RAW_PIXEL_BYTES = 4 + 1 + 12 + 4

lowering_option = partial(typer.Option, rich_help_panel="FP16, INT8 and FP8")
cpu_option = partial(typer.Option, rich_help_panel="ONNX Runtime and OpenVINO")
tensorrt_option = partial(typer.Option, rich_help_panel="TensorRT and TensorRT-RTX")


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file of m2h-deploy export, or of --graph.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Bundle to write.")] = (
        Path("bundle")
    ),
    engine: Annotated[
        Engine, typer.Option(metavar="NAME", help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")
    ] = "onnxruntime",
    precision: Annotated[
        Precision | None, typer.Option(help="Lower a float32 graph to this.", show_default="as the graph is")
    ] = None,
    calibration: Annotated[
        str | None,
        lowering_option(
            metavar="SOURCE",
            help="Folder, video or NYUv2: INT8 and FP8 are calibrated on it, and all are measured on it.",
        ),
    ] = None,
    calibration_frames: Annotated[
        int | None, lowering_option(metavar="N", help="INT8, FP8: how many frames.", min=1, show_default="64")
    ] = None,
    calibrator: Annotated[
        Calibrator | None,
        lowering_option(metavar="NAME", help="INT8: ranges by max, entropy or percentile.", show_default="max"),
    ] = None,
    seed: Annotated[
        int | None, lowering_option(metavar="N", help="Seed that chooses the frames.", show_default="0")
    ] = None,
    policy: Annotated[
        Path | None, lowering_option(metavar="FILE", help="INT8, FP8: JSON with the blocks to quantize and to keep.")
    ] = None,
    min_psnr: Annotated[
        float | None, lowering_option(metavar="DB", help="INT8, FP8: keep costly blocks in FP16 up to this PSNR.")
    ] = None,
    speed: Annotated[
        bool, lowering_option("--speed/--no-speed", help="Measure how much faster than float32 it is here.")
    ] = True,
    io: Annotated[FloatType, lowering_option(help="Type of the graph's inputs and outputs.")] = "fp32",
    graph: Annotated[
        Path | None,
        lowering_option(metavar="FILE", help="Save the lowered graph as ONNX; a device without PyTorch can build it."),
    ] = None,
    threads: Annotated[
        int | None, cpu_option(metavar="N", help="CPU threads that the bundle asks for.", min=1, show_default="all")
    ] = None,
    provider: Annotated[
        Provider | None,
        cpu_option(metavar="NAME", help="ONNX Runtime: cpu, cuda, tensorrt or nv-tensorrt-rtx.", show_default="cpu"),
    ] = None,
    hint: Annotated[
        ComputePrecision | None,
        cpu_option(help="OpenVINO: what to compute in.", show_default="fastest that is true to the precision"),
    ] = None,
    float32: Annotated[
        list[str] | None,
        cpu_option(metavar="BLOCK", help="OpenVINO: a block to compute in float32 (heads.edges); may repeat."),
    ] = None,
    target: Annotated[
        str | None,
        tensorrt_option(
            metavar="GPUS",
            help="RTX: 8.6,rtx4090,... or portable (8.0, 8.6, 8.9, 12.x; in FP8 8.9, 12.0).",
            show_default="portable",
        ),
    ] = None,
    workspace: Annotated[int | None, tensorrt_option(metavar="MB", help="Workspace.", min=1)] = None,
    level: Annotated[int | None, tensorrt_option(metavar="0..5", help="Builder optimization level.")] = None,
    version_compatible: Annotated[
        bool, tensorrt_option("--version-compatible", help="TensorRT only: let later versions run the plan.")
    ] = False,
    hardware_compatible: Annotated[
        bool, tensorrt_option("--hardware-compatible", help="TensorRT only: let every GPU from Ampere on run it.")
    ] = False,
    strip_weights: Annotated[
        bool, tensorrt_option("--strip-weights", help="Keep the weights in a separate file.")
    ] = False,
    max_batch: Annotated[
        int | None,
        tensorrt_option(metavar="N", help="Largest batch, if the batch is free.", min=1, show_default="4"),
    ] = None,
    expected_batch: Annotated[
        int | None,
        tensorrt_option(metavar="N", help="Batch to tune for, if the batch is free.", min=1, show_default="1"),
    ] = None,
    plugins: Annotated[list[Path] | None, tensorrt_option(metavar="FILE", help="Plug-in library; may repeat.")] = None,
    trtexec: Annotated[
        bool,
        tensorrt_option("--trtexec", help="Print the equivalent trtexec command; builds nothing without TensorRT."),
    ] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Build an engine from an exported graph and put it into a bundle. An earlier bundle at --output is replaced.

    A folder that is not a bundle is never replaced; --overwrite is about the files of --graph and --json.
    """
    from engines import Lowering, build_bundle, load_policy, options_of, trtexec_of
    from engines.tensorrt import check_machine

    if graph is not None:
        check_output(graph, "onnx", overwrite=overwrite, sources=[model])
    request: dict[str, Any] = {
        "engine": engine,
        "precision": precision,
        "graph": graph,
        "lowering": Lowering(
            frames=calibration,
            count=calibration_frames,
            seed=seed,
            method=calibrator,
            policy=load_policy(policy) if policy else None,
            min_psnr=min_psnr,
            io=io,
            speed=speed,
        ),
        "options": options_of(
            engine,
            {
                "threads": threads,
                "provider": provider,
                "hint": hint,
                "float32": tuple(float32) if float32 else None,
                "targets": choose_targets(engine, target),
                "workspace_mb": workspace,
                "level": level,
                "version_compatible": version_compatible or None,
                "hardware_compatible": hardware_compatible or None,
                "strip_weights": strip_weights or None,
                "max_batch": max_batch,
                "expected_batch": expected_batch,
                "plugins": tuple(plugins) if plugins else None,
            },
        ),
    }
    if trtexec:
        check_trtexec(engine, precision, graph)
        try:
            check_machine(engine)
        except M2HError as reason:
            command = trtexec_of(model, **request)
            print_json({"bundle": None, "trtexec": command}) if as_json else out.print(
                command, markup=False, soft_wrap=True
            )
            if graph is not None:
                tell_psnr(graph)
            say(f"no bundle was built: {reason}", "yellow")
            return
    with status("building"):
        bundle = build_bundle(model, output, progress=say, **request)
    measured = measured_by_build(bundle)
    tell(bundle)
    if trtexec:
        name = shlex.quote((graph or model).name)
        command = str(bundle.manifest.engine.options["trtexec"]).replace("model.onnx", name)
        if as_json:
            measured["trtexec"] = command
        else:
            out.print(command, markup=False, soft_wrap=True)
    print_json(measured) if as_json else print_measured(measured)


def choose_targets(engine: str, target: str | None) -> tuple[str, ...] | None:
    """Return the compute capabilities of `--target`. Raise M2HError where TensorRT cannot build for all."""
    from engines import parse_targets

    if target is None:
        return None
    targets = parse_targets(target)
    if not targets and engine == "tensorrt":
        raise M2HError(f"{engine} has no portable plans: leave --target out, or use --engine tensorrt-rtx")
    return targets


def check_trtexec(engine: str, precision: str | None, graph: Path | None) -> None:
    """Raise M2HError where there is no trtexec command to print."""
    if precision in ("fp16", "int8", "fp8") and graph is None:
        raise M2HError(
            f"trtexec needs the {precision} graph that is compiled: save it with --graph FILE.onnx, or leave out "
            "--precision where the file is lowered already"
        )
    if not engine.startswith("tensorrt"):
        raise M2HError(f"--trtexec applies only to TensorRT, not to {engine}: choose --engine tensorrt or tensorrt-rtx")


def measured_by_build(bundle: Bundle) -> dict[str, Any]:
    """Return what the build measured: for each output its self-test and, of a lowered graph, its PSNR in dB."""
    manifest = bundle.manifest
    engine, test, psnr = manifest.engine, manifest.self_test, manifest.lowering.psnr if manifest.lowering else {}
    outputs = {
        name: {
            "self_test_error": test.measured.get(name),
            "self_test_tolerance": test.tolerance_of(name),
            "psnr": psnr.get(name),
        }
        for name in (test.outputs if test is not None else ())
        if test is not None
    }
    return {
        "bundle": str(bundle.path),
        "engine": engine.kind,
        "version": engine.version,
        "precision": engine.precision,
        "bytes": sum((bundle.path / name).stat().st_size for name in manifest.files),
        "outputs": outputs,
        "speed": manifest.speed,
        "notes": list(engine.options.get("notes", ())),
    }


def print_measured(measured: dict[str, Any]) -> None:
    """Print what the build measured, one row for each output."""
    lowered = any(row["psnr"] is not None for row in measured["outputs"].values())
    table = Table("output", "self-test error", "tolerance", *(["PSNR"] if lowered else []), box=None)
    for name, row in measured["outputs"].items():
        error = "not run" if row["self_test_error"] is None else f"{row['self_test_error']:.1e}"
        psnr = ["-" if row["psnr"] is None else f"{row['psnr']:.1f} dB"] if lowered else []
        table.add_row(name, error, f"{row['self_test_tolerance']:.2g}", *psnr)
    out.print(table)


def tell(bundle: Bundle) -> None:
    """Say what was built, and what its user should know."""
    manifest = bundle.manifest
    size = sum((bundle.path / name).stat().st_size for name in manifest.files) / 1e6
    engine, test = manifest.engine, manifest.self_test
    say(f"wrote {bundle.path} ({engine.kind} {engine.version}, {engine.precision}, {size:.1f} MB)")
    if manifest.lowering is not None:
        if not manifest.lowering.psnr:
            say("PSNR against float32: not measured: give --calibration FOLDER, or compare with m2h-deploy verify")
        risky = manifest.lowering.weights_beyond_fp16
        if risky:
            more = f" and {len(risky) - 3} more" if len(risky) > 3 else ""
            measured = bool(manifest.lowering.psnr)
            cost = "the PSNR says what that costs" if measured else "m2h-deploy verify measures what that costs"
            say(
                f"{len(risky)} layers hold weights that FP16 rounds to zero, to its least value or to infinity: "
                f"{', '.join(risky[:3])}{more}; {cost}",
                "yellow",
            )
    if manifest.speed is not None:
        tell_speed(manifest.speed, engine.precision)
    if test is not None and test.reference != "float32 graph":
        say(
            f"{manifest.model.variant} was lowered by another tool: its self-test is made from the {engine.precision} "
            "graph itself, and m2h-deploy verify compares it with the checkpoint",
            "yellow",
        )
    if KINDS[engine.kind].needs_gpu and manifest.sensor is None:
        raw = RAW_PIXEL_BYTES * manifest.input.height * manifest.input.width
        say(
            f"each frame brings {manifest.output_bytes / 1e6:.1f} MB back from the GPU: a raw-pixel graph (export "
            f"--sensor uint8) brings {raw / 1e6:.1f} MB for a camera of this size, and decodes on the GPU"
        )
    for note in engine.options.get("notes", ()):
        say(note, "yellow")


def tell_psnr(graph: Path) -> None:
    """Say how far the outputs of a lowered graph are from float32, where that was measured."""
    from m2h_deploy.onnx_graph.files import read_onnx
    from m2h_deploy.onnx_graph.info import GraphInfo

    lowered = GraphInfo.read(read_onnx(graph), graph).lowered
    if lowered is not None and lowered.lowering.psnr:
        rows = (f"{name} {value:.1f} dB" for name, value in lowered.lowering.psnr.items())
        say(f"PSNR against float32: {', '.join(rows)}")


def tell_speed(speed: dict[str, Any], precision: str) -> None:
    """Say how much faster than float32 the engine is here; warn where it is slower."""
    ratio = speed["times_as_fast"]
    ends = "" if ratio["low"] is None or ratio["high"] is None else f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
    words = f"{precision} is {ratio['value']:.2f} times as fast as fp32{ends}: {speed['engine']}, {speed['processor']}"
    slower = ratio["value"] < 1 and (ratio["high"] is None or ratio["high"] < 1)
    better = "; slower here: leave out --precision, or let m2h-deploy tune choose the engine" if slower else ""
    say(words + better, "yellow" if slower else None)
