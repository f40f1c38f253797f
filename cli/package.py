"""m2h-deploy package: a bundle with what another program needs to run it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import app
from m2h_deploy.console import say
from m2h_deploy.errors import M2HError


@app.command()
def package(
    bundle: Annotated[Path, typer.Argument(help="Sensor bundle; for Mono-Hydra an ONNX file, or a bundle of one.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="New folder.")],
    cpp: Annotated[bool, typer.Option("--cpp", help="libm2h, its headers and an example, for C and C++.")] = False,
    mono_hydra: Annotated[
        bool, typer.Option("--mono-hydra", help="ONNX file and YAML for Mono-Hydra's present ONNX node.")
    ] = False,
) -> None:
    """Lay a bundle out with what another program needs to run it."""
    if cpp == mono_hydra:
        raise M2HError("say what to package for: --cpp or --mono-hydra")
    if mono_hydra:
        from engines.mono_hydra import PARAMETERS, package_mono_hydra

        path = package_mono_hydra(bundle, output)
        say(f"wrote {path}: {PARAMETERS} there says how to run it")
        return
    from m2h_deploy.packaging import package_cpp

    path = package_cpp(bundle, output)
    say(f"wrote {path}: README.md there says how to build it")
