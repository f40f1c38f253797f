"""The Typer app, and how a command ends: exit codes and errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli.console import say, send_json_to, show_log
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.driver import extra_here
from m2h_deploy.bundle.folder import MANIFEST, check_outside
from m2h_deploy.causes import machine_words
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.provenance import check_output
from m2h_deploy.stdio import end_on_signals, prepare_streams


class Commands(TyperGroup):
    """The commands. `--json` may be followed by a name that ends in .json: the file that gets the result."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the name of the result's file out of the arguments, and check its place before the work."""
        args, file = take_json_file(args)
        if file is not None:
            check_output(file, "json", overwrite="--overwrite" in args)
            if (file.parent / MANIFEST).is_file():
                check_outside(file.parent, file)
        send_json_to(file)
        return super().parse_args(ctx, args)


def take_json_file(args: list[str]) -> tuple[list[str], Path | None]:
    """Split the name that follows `--json` from the other arguments, if it ends in .json."""
    for position, argument in enumerate(args):
        name = argument.removeprefix("--json=") if argument.startswith("--json=") else None
        if name is not None and not name.endswith(".json"):
            raise M2HError(f"--json={name}: the name of the file must end in .json")
        if name is not None:
            return [*args[:position], "--json", *args[position + 1 :]], Path(name)
        if argument == "--json" and args[position + 1 : position + 2] and args[position + 1].endswith(".json"):
            return args[: position + 1] + args[position + 2 :], Path(args[position + 1])
    return args, None


app = typer.Typer(
    cls=Commands,
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
    "yaml": "export",
    "h5py": "data",
    **dict.fromkeys(("matplotlib", "jinja2"), "report"),
    **dict.fromkeys(("ray", "pyarrow"), "ray"),
    "cuda": "tensorrt",
    "open3d": "map",
    "mlperf_loadgen": "bench",
    **dict.fromkeys(("ml_dtypes", "modelopt", "nncf"), "precision"),
}

#: The command line's own errors. Typer has had classes of its own for them since it left Click.
UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")

#: Options of the panels that several commands have.
result_option = partial(typer.Option, rich_help_panel="Results")
engine_option = partial(typer.Option, rich_help_panel="Engine")
ray_option = partial(typer.Option, rich_help_panel="Ray")

JsonFlag = Annotated[
    bool, typer.Option("--json", metavar="[FILE]", help="Print the result as JSON, or write it to FILE.json.")
]

OverwriteFlag = Annotated[bool, typer.Option("--overwrite", help="Also replace files that m2h-deploy did not write.")]

RecordFlag = Annotated[bool, result_option("--record", help="Write the result into the bundle's manifest, too.")]

ThreadsOption = Annotated[
    int | None, engine_option(metavar="N", help="CPU threads.", min=1, show_default="its own; on Ray 1")
]

DeviceOption = Annotated[
    str | None,
    engine_option(
        metavar="NAME", help="Device: cuda (ONNX Runtime), GPU (OpenVINO), 1 (TensorRT).", show_default="its own"
    ),
]

PluginsOption = Annotated[
    list[Path] | None, engine_option(metavar="FILE", help="TensorRT: plug-in library to load; may repeat.")
]

EngineCodeFlag = Annotated[
    bool, engine_option("--allow-engine-code", help="TensorRT: execute the code in a version-compatible plan.")
]


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Raise M2HError, which names an extra, where a package that the block imports is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name)
        # Left out of all other extras, because it would overwrite onnxruntime-gpu.
        raise missing_extra(name, "onnxruntime" if name == "onnxruntime" else extra) from None


def main() -> None:
    """Entry point of the console script: exit code 0 good, 1 a check failed, 2 bad input or environment."""
    prepare_streams()
    end_on_signals()
    show_log()
    try:
        _check_working_folder()
        try:
            sys.exit(app(prog_name="m2h-deploy", standalone_mode=False))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except M2HError as error:
        say(f"error: {error}", "red")
        sys.exit(error.exit_code)
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            command = error.ctx.command_path if error.ctx is not None else "m2h-deploy"
            say(f"error: {error.format_message().rstrip('.')}: see {command} --help", "red")
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        say(f"error: {missing_extra(str(error.name), extra_here(extra))}", "red")
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
