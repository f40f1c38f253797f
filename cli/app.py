"""The Typer app, and how a command ends: exit codes and errors in one line."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from m2h_deploy.console import say
from m2h_deploy.errors import M2HError, missing_extra

app = typer.Typer(
    help="Take an M2H checkpoint to a verified engine and run it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: What a device leaves out on purpose, and the extra that has it.
EXTRA_OF = {
    **dict.fromkeys(("torch", "onnx", "onnxscript", "safetensors"), "export"),
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
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


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a command as Ctrl-C does: temporary files go, what was finished stays."""
    raise KeyboardInterrupt


def main() -> None:
    """Entry point of the console script: exit code 0 good, 1 a check failed, 2 bad input or environment."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except M2HError as error:
        say(f"error: {error}", "red")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        say(f"error: {missing_extra(str(error.name), extra)}", "red")
        sys.exit(2)
