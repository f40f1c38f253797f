"""m2h-deploy build: an ONNX file as a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import OverwriteFlag, app
from cli.console import out, say, status
from m2h_deploy.errors import M2HError
from m2h_deploy.files.provenance import check_output

if TYPE_CHECKING:
    from m2h_deploy.bundle.folder import Bundle


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file of m2h-deploy export, or the lowered one of --graph.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("bundle"),
    engine: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16 or int8: lowers a float32 graph.", show_default="as the graph is")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads that the bundle asks for.", min=1)] = None,
    provider: Annotated[
        str | None, typer.Option(help="ONNX Runtime: cpu, cuda, tensorrt, nv-tensorrt-rtx.", show_default="cpu")
    ] = None,
    hint: Annotated[str | None, typer.Option(help="OpenVINO: compute in f32, bf16 or f16.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="Folder, video or NYUv2: INT8 is calibrated on it, and FP16 and INT8 are measured on it."),
    ] = None,
    calibration_frames: Annotated[
        int | None, typer.Option(help="INT8: how many frames.", min=1, show_default="64")
    ] = None,
    calibrator: Annotated[
        str | None, typer.Option(help="INT8: max, entropy or percentile.", show_default="max")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed that chooses the frames.", show_default="0")] = None,
    policy: Annotated[Path | None, typer.Option(help="INT8: JSON with the blocks to quantize and to keep.")] = None,
    min_psnr: Annotated[float | None, typer.Option(help="INT8: keep costly blocks in FP16 up to this (dB).")] = None,
    io: Annotated[str, typer.Option(help="Lowering: type of inputs and outputs, fp32 or fp16.")] = "fp32",
    target: Annotated[
        str | None, typer.Option(help="TensorRT-RTX: 8.6,rtx4090,... or portable.", show_default="portable")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="TensorRT: workspace in MB.", min=1)] = None,
    level: Annotated[int | None, typer.Option(help="TensorRT: builder level 0 to 5.")] = None,
    version_compatible: Annotated[bool, typer.Option(help="TensorRT: let later versions run the plan.")] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="TensorRT: let every GPU from Ampere on run it.")] = False,
    strip_weights: Annotated[bool, typer.Option(help="TensorRT: keep the weights in a separate file.")] = False,
    max_batch: Annotated[
        int | None, typer.Option(help="TensorRT: largest batch, if the batch is free.", min=1, show_default="4")
    ] = None,
    plugins: Annotated[list[Path] | None, typer.Option(help="TensorRT: plug-in library; may repeat.")] = None,
    graph: Annotated[
        Path | None, typer.Option(help="Keep the lowered graph as this ONNX file, which a device can build.")
    ] = None,
    trtexec: Annotated[
        bool,
        typer.Option(help="TensorRT: print the equivalent trtexec command; nothing is built without TensorRT."),
    ] = False,
    overwrite: OverwriteFlag = False,
) -> None:
    """Build an engine from an exported graph and put it into a bundle. An earlier bundle at --output is replaced.

    A folder that is not a bundle is never replaced, --overwrite or not; that is about the file of --graph.
    """
    from engines import Lowering, build_bundle, load_policy, options_of, trtexec_of
    from engines.tensorrt import check_machine

    if graph is not None:
        check_output(graph, "onnx", overwrite=overwrite, sources=[model])
    if io not in ("fp32", "fp16"):
        raise M2HError(f"io '{io}': choose fp32 or fp16")
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
            io="fp16" if io == "fp16" else "fp32",
        ),
        "options": options_of(
            engine,
            {
                "threads": threads,
                "provider": provider,
                "hint": hint,
                "targets": choose_targets(engine, target),
                "workspace_mb": workspace,
                "level": level,
                "version_compatible": version_compatible or None,
                "hardware_compatible": hardware_compatible or None,
                "strip_weights": strip_weights or None,
                "max_batch": max_batch,
                "plugins": tuple(plugins) if plugins else None,
            },
        ),
    }
    if trtexec:
        check_trtexec(engine, precision, graph)
        try:
            check_machine(engine)
        except M2HError as reason:
            out.print(trtexec_of(model, **request), markup=False, soft_wrap=True)
            say(f"no bundle was built: {reason}", "yellow")
            return
    with status("building"):
        bundle = build_bundle(model, output, progress=say, **request)
    tell(bundle)
    if trtexec:
        command = str(bundle.manifest.engine.options["trtexec"])
        out.print(command.replace("model.onnx", shlex.quote((graph or model).name)), markup=False, soft_wrap=True)


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
    """Raises M2HError where there is no trtexec command to print."""
    if precision in ("fp16", "int8") and graph is None:
        raise M2HError(
            f"trtexec needs the {precision} graph that is compiled: keep it with --graph FILE.onnx, or leave out "
            "--precision where the file is lowered already"
        )
    if not engine.startswith("tensorrt"):
        raise M2HError(f"--trtexec applies only to TensorRT, not to {engine}: choose --engine tensorrt or tensorrt-rtx")


def tell(bundle: Bundle) -> None:
    """Say what was built, what lowering costs, and what its user should know."""
    manifest = bundle.manifest
    size = sum((bundle.path / name).stat().st_size for name in manifest.files) / 1e6
    engine, test = manifest.engine, manifest.self_test
    say(f"wrote {bundle.path} ({engine.kind} {engine.version}, {engine.precision}, {size:.1f} MB)")
    if manifest.lowering is not None:
        psnr = ", ".join(f"{name} {value:.1f} dB" for name, value in manifest.lowering.psnr.items())
        missing = "not measured: give --calibration FOLDER, or compare with m2h-deploy verify"
        say(f"PSNR against float32: {psnr or missing}")
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
    if test is not None and test.reference != "float32 graph":
        say(
            f"{manifest.model.variant} was lowered by another tool: its self-test is made from the {engine.precision} "
            "graph itself, and m2h-deploy verify compares it with the checkpoint",
            "yellow",
        )
    for note in engine.options.get("notes", ()):
        say(note, "yellow")
