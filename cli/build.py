"""m2h-deploy build: an ONNX file as a bundle."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cli.app import app
from m2h_deploy.console import out, say
from m2h_deploy.errors import M2HError


@app.command()
def build(
    model: Annotated[Path, typer.Argument(help="ONNX file of m2h-deploy export.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("bundle"),
    engine: Annotated[str, typer.Option(help="onnxruntime, openvino, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    threads: Annotated[int | None, typer.Option(help="CPU threads that the bundle asks for.", min=1)] = None,
    affinity: Annotated[str | None, typer.Option(help="Processors that those threads stay on, as 0,2-3.")] = None,
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
    hardware_compatible: Annotated[bool, typer.Option(help="TensorRT: let every GPU from Ampere on run it.")] = False,
    strip_weights: Annotated[bool, typer.Option(help="TensorRT: leave the weights beside the plan.")] = False,
    max_batch: Annotated[int, typer.Option(help="TensorRT: largest batch of a free batch.", min=1)] = 4,
    plugins: Annotated[list[Path] | None, typer.Option(help="TensorRT: plug-in library; may repeat.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Keep the FP16 or INT8 graph as this ONNX file.")] = None,
    trtexec: Annotated[bool, typer.Option(help="TensorRT: print the equal trtexec command.")] = False,
) -> None:
    """Build an engine from an exported graph and put it into a bundle."""
    from engines import BuildOptions, Lowering, build_bundle, load_policy, parse_targets
    from m2h_deploy.backends.affinity import parse_processors

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
        hardware_compatible=hardware_compatible,
        strip_weights=strip_weights,
        max_batch=max_batch,
        plugins=tuple(plugins or ()),
    )
    bundle = build_bundle(
        model,
        output,
        engine=engine,
        precision=precision,
        threads=threads,
        affinity=parse_processors(affinity) if affinity else (),
        provider=provider,
        hint=hint,  # type: ignore[arg-type]
        lowering=lowering,
        tensorrt=options,
        graph=graph,
        progress=say,
    )
    manifest = bundle.manifest
    size = sum((bundle.path / name).stat().st_size for name in manifest.files) / 1e6
    say(f"wrote {bundle.path} ({manifest.engine.kind} {manifest.engine.version}, {precision}, {size:.1f} MB)")
    if manifest.lowering is not None:
        psnr = ", ".join(f"{name} {value:.1f} dB" for name, value in manifest.lowering.psnr.items())
        say(f"PSNR against float32: {psnr}" if psnr else "PSNR against float32: give --calibration to measure it")
        risky = manifest.lowering.weights_beyond_fp16
        if risky:
            more = f" and {len(risky) - 3} more" if len(risky) > 3 else ""
            say(
                f"{len(risky)} layers hold weights that FP16 rounds to zero, to its least value or to infinity: "
                f"{', '.join(risky[:3])}{more}; the PSNR says what that costs",
                "yellow",
            )
    for note in manifest.engine.options.get("notes", ()):
        say(note, "yellow")
    if trtexec and "trtexec" in manifest.engine.options:
        command = str(manifest.engine.options["trtexec"])
        file = shlex.quote((graph or model).name)
        out.print(command.replace("model.onnx", file), markup=False, soft_wrap=True)
