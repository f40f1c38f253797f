"""m2h-deploy package: a bundle with what another program needs to run it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.app import app
from cli.console import say
from m2h_deploy.errors import M2HError, install_extra

if TYPE_CHECKING:
    from m2h_deploy.packaging.triton import RepositoryOptions


triton_option = partial(typer.Option, rich_help_panel="Triton Inference Server")


@app.command()
def package(
    bundle: Annotated[
        Path, typer.Argument(help="Bundle (--cpp: of a sensor graph), or for --mono-hydra and --hydra an ONNX file.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="New folder, for all but --triton."),
    ] = None,
    cpp: Annotated[bool, typer.Option("--cpp", help="libm2h, its headers and an example, for C and C++.")] = False,
    mono_hydra: Annotated[
        bool, typer.Option("--mono-hydra", help="ONNX file and YAML for Mono-Hydra's existing ONNX node.")
    ] = False,
    hydra: Annotated[
        bool, typer.Option("--hydra", help="ONNX file, YAML and colors for Hydra's semantic_inference.")
    ] = False,
    triton: Annotated[
        Path | None, triton_option("--triton", metavar="FOLDER", help="Add the model to this model repository.")
    ] = None,
    name: Annotated[str | None, triton_option(metavar="NAME", help="Name of the model.", show_default="m2h")] = None,
    max_batch: Annotated[
        int | None, triton_option(metavar="N", help="Frames that run together at most.", show_default="8")
    ] = None,
    delay_ms: Annotated[
        float | None, triton_option(metavar="MS", help="Time that a frame waits for others.", show_default="2")
    ] = None,
    instances: Annotated[
        int | None, triton_option(metavar="N", help="Engines that work at once.", show_default="1")
    ] = None,
    threads: Annotated[
        int | None, triton_option(metavar="N", help="CPU threads of each engine.", min=1, show_default="its own")
    ] = None,
) -> None:
    """Package a bundle with what another program needs to run it."""
    programs = {"--cpp": cpp, "--mono-hydra": mono_hydra, "--hydra": hydra, "--triton": triton is not None}
    chosen = [option for option, value in programs.items() if value]
    if not chosen:
        raise M2HError("choose what to package for: --cpp, --mono-hydra, --hydra or --triton FOLDER")
    if len(chosen) > 1:
        raise M2HError(f"{' and '.join(chosen)} exclude each other: a package is for one program, run package for each")
    given = {
        "name": name,
        "max_batch": max_batch,
        "delay_ms": delay_ms,
        "instances": instances,
        "threads": threads,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if triton is not None:
        if output is not None:
            raise M2HError("--triton names the folder to write: leave --output out")
        from m2h_deploy.packaging.triton import RepositoryOptions

        _package_triton(bundle, triton, RepositoryOptions(**options))
        return
    if options:
        raise M2HError(f"--{next(iter(options)).replace('_', '-')} applies only to a repository: give --triton too")
    if output is None:
        raise M2HError("the folder to write is missing: give --output FOLDER")
    if mono_hydra:
        from m2h_deploy.packaging.mono_hydra import PARAMETERS, package_mono_hydra

        path = package_mono_hydra(bundle, output)
        say(f"wrote {path}: {PARAMETERS} there says how to run it")
        return
    if hydra:
        from m2h_deploy.packaging.hydra import README, package_hydra

        path = package_hydra(bundle, output)
        say(f"wrote {path}: {README} there says how to run it")
        return
    from m2h_deploy.packaging.cpp import package_cpp

    path = package_cpp(bundle, output)
    say(f"wrote {path}: README.md there says how to build it")


def _package_triton(bundle: Path, repository: Path, options: RepositoryOptions) -> None:
    from m2h_deploy.backends import KINDS
    from m2h_deploy.bundle.folder import load_bundle
    from m2h_deploy.packaging.triton import batches, is_native, write_repository

    path = write_repository(bundle, repository, options)
    manifest = load_bundle(bundle).manifest
    if is_native(manifest):
        say(f"wrote {path}: Triton's {manifest.engine.kind} backend runs it")
    else:
        say(
            f"wrote {path}: Triton's Python backend runs it; for the server's Python, "
            f"{install_extra(KINDS[manifest.engine.kind].extra)}"
        )
    if not batches(manifest):
        say(f"the graph's batch is fixed at {manifest.input.batch}, so Triton does not batch: export --dynamic-batch")
