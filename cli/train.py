"""m2h-deploy train and evaluate: the paper's recipe, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.app import JsonFlag, app, needs
from m2h_deploy.console import out, print_json, say

ConfigArgument = Annotated[Path, typer.Argument(help="TOML file that describes the run; see configs/.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
WorkersOption = Annotated[int, typer.Option(help="Processes that read or render frames.", min=1)]


@app.command()
def train(
    config: ConfigArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option(help="Continue the unfinished run in the folder.")] = False,
    device: DeviceOption = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder that caches frames (default: in the run).")] = None,
    workers: WorkersOption = 1,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune the config's checkpoint for INT8.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network with the paper's recipe and evaluate it. Ctrl-C saves the state; go on with --resume.

    An earlier run in the folder is replaced only with --overwrite.
    """
    with needs("train"):
        from m2h_deploy.training import interrupted_message, table
        from m2h_deploy.training import run as train_network

    try:
        result = train_network(
            config, output, resume=resume, device=device, cache=cache, workers=workers, qat=qat, overwrite=overwrite
        )
    except KeyboardInterrupt:
        say(interrupted_message(output, overwrite=overwrite), "yellow")
        raise
    if as_json:
        print_json(result)
    else:
        out.print(table(result), markup=False)


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint, or m2h-tiny for the built-in network.")],
    config: ConfigArgument,
    table_in: Annotated[
        Path | None,
        typer.Option(
            "--table",
            help="Markdown file with a place for the table: <!-- evaluation --> ... <!-- end of evaluation -->.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    cache: Annotated[Path | None, typer.Option(help="Folder that caches frames.")] = None,
    workers: WorkersOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Measure a checkpoint on the validation frames of a training run's TOML file."""
    with needs("train"):
        from m2h_deploy.training import check_marks, evaluate_checkpoint, replace_table, table

    if table_in is not None:
        check_marks(table_in)
    result = evaluate_checkpoint(checkpoint, config, device=device, cache=cache, workers=workers)
    if as_json:
        print_json(result)
    else:
        out.print(table(result), markup=False)
    if table_in is not None:
        say(f"wrote the table into {replace_table(table_in, result)}")
