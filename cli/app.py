"""The Typer app, and how a command ends: exit codes and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.console import say, show_log
from m2h_deploy.backends import KINDS
from m2h_deploy.causes import machine_words
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.stdio import end_on_signals, prepare_streams

app = typer.Typer(
    help="Take an M2H checkpoint to a verified engine and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What a device leaves out on purpose, and the extra that has it.
EXTRA_OF = {
    "onnx": "build",
    **dict.fromkeys(("torch", "onnxscript", "safetensors"), "export"),
    **{kind.module: kind.extra for kind in KINDS.values()},
    **dict.fromkeys(("kornia", "tomli"), "train"),
    "rerun": "rerun",
    **dict.fromkeys(("h5py", "scipy"), "data"),
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    **dict.fromkeys(("ray", "pyarrow"), "ray"),
    "cuda": "tensorrt",
    "mlperf_loadgen": "bench",
    "modelopt": "precision",
}

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

EngineDeviceOption = Annotated[
    str | None,
    typer.Option(
        help="Device of the engine: cuda (ONNX Runtime), GPU (OpenVINO), 1 (TensorRT).", show_default="its own"
    ),
]

OverwriteFlag = Annotated[
    bool, typer.Option("--overwrite", help="Also replace files that m2h-deploy did not write.", show_default=False)
]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Raise M2HError, which names an extra, where a package that the block imports is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_extra(str(error.name), extra) from None


def main() -> None:
    """Entry point of the console script: exit code 0 good, 1 a check failed, 2 bad input or environment."""
    prepare_streams()
    end_on_signals()
    show_log()
    try:
        _check_working_folder()
        try:
            app()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except M2HError as error:
        say(f"error: {error}", "red")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        say(f"error: {missing_extra(str(error.name), extra)}", "red")
        sys.exit(2)
    except (OSError, MemoryError) as error:  # of places that no command names better
        say(f"error: {machine_words(error)}", "red")
        sys.exit(2)


def _check_working_folder() -> None:
    """Raise M2HError where the working directory was removed: relative paths have no meaning there."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise M2HError("the working directory was removed: change to one that exists") from None
