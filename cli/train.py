"""m2h-deploy train and evaluate: train with the paper's recipe, and measure a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli.app import JsonFlag, app, needs
from cli.console import leads, out, print_json, say, training_progress
from m2h_deploy.choices import TorchDevice
from m2h_deploy.errors import M2HError

ConfigArgument = Annotated[Path, typer.Argument(help="TOML file that describes the run; see configs/.")]
TorchDeviceOption = Annotated[TorchDevice, typer.Option(help="Where PyTorch computes.")]
LoadersOption = Annotated[int, typer.Option(metavar="N", help="Processes that read or render frames.", min=1)]


@app.command()
def train(
    config: ConfigArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in the folder.")] = False,
    device: TorchDeviceOption = "auto",
    cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder that caches frames.", show_default="in the run")
    ] = None,
    loaders: LoadersOption = 1,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune the config's checkpoint for INT8.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a network with the paper's recipe and evaluate it. Ctrl-C saves the state; go on with --resume.

    An earlier run in the folder is replaced only with --overwrite.
    """
    with needs("train"):
        from m2h_deploy.training import interrupted_message, load_config
        from m2h_deploy.training import train as train_network

    if resume and overwrite:
        raise M2HError("--resume continues the run that --overwrite replaces: give one of the two")
    existing: Literal["refuse", "resume", "replace"] = "resume" if resume else "replace" if overwrite else "refuse"
    settings = load_config(config)
    try:
        with training_progress() as progress:
            result = train_network(
                settings, output, existing=existing, device=device, cache=cache, workers=loaders, qat=qat,
                progress=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        if leads():
            say(interrupted_message(output, overwrite=overwrite), "yellow")
        raise
    if leads():
        _show(result, as_json)


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint, or m2h-tiny for the built-in network.")],
    config: ConfigArgument,
    device: TorchDeviceOption = "auto",
    cache: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder that caches frames.")] = None,
    loaders: LoadersOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Measure a checkpoint on the validation frames of a training run's TOML file."""
    with needs("train"):
        from m2h_deploy.training import evaluate_checkpoint

    with training_progress() as progress:
        result = evaluate_checkpoint(checkpoint, config, device=device, cache=cache, workers=loaders, progress=progress)
    _show(result, as_json)


def _show(result: dict[str, Any], as_json: bool) -> None:
    from m2h_deploy.training import table

    if as_json:
        print_json(result)
    else:
        out.print(table(result), markup=False)
