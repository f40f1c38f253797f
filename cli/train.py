"""m2h-deploy train: the paper's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.app import JsonFlag, app
from m2h_deploy.console import out, print_json
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    pass


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="TOML file that describes the run; see configs/.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Go on with the unfinished run in the folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where frames are kept (default: in the folder).")] = None,
    workers: Annotated[int, typer.Option(help="Processes that read or render frames.", min=1)] = 1,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune the config's checkpoint for INT8.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network with the paper's recipe and evaluate it. Ctrl-C saves the state; go on with --resume."""
    from m2h_deploy.training import run as train_network
    from m2h_deploy.training import table

    if device not in ("auto", "cpu", "cuda"):
        raise M2HError(f"device '{device}': choose auto, cpu or cuda")
    result = train_network(config, output, resume=resume, device=device, cache=cache, workers=workers, qat=qat)
    if as_json:
        print_json(result)
    else:
        out.print(table(result), markup=False)
