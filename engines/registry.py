"""The engine kinds that can be built, one entry each.

Importing it needs no engine and no onnx: the modules of the kinds import them when they build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engines import onnxruntime, openvino, tensorrt
from engines.onnxruntime import OnnxRuntimeOptions
from engines.openvino import OpenVinoOptions
from engines.options import EngineOptions
from engines.tensorrt import TensorRtOptions
from m2h_deploy.backends import KINDS
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.errors import M2HError

if TYPE_CHECKING:
    import onnx

    from m2h_deploy.profiling.hardware import Nvidia

Options = TypeVar("Options", bound=EngineOptions)


@dataclass(frozen=True)
class DoctorRow:
    """How `doctor` looks for an engine."""

    distributions: tuple[str, ...]
    """Python packages that carry it; the first that is installed counts."""
    module: str
    devices: Callable[[Any, Nvidia], tuple[str, ...]]
    """(module, GPUs of this machine) to what the engine can use here."""
    without_devices: str = ""
    """What to say where it can use none."""


def _accept(*arguments: Any) -> None:
    """Check nothing."""


@dataclass(frozen=True)
class EngineBuilder(Generic[Options]):
    """How to build engines of one kind. Every check raises M2HError."""

    name: str
    options: type[Options]
    build: Callable[[Path, Path, str, Options], EngineInfo]
    """(ONNX file, folder to write to, precision of the file, options)."""
    doctor: DoctorRow
    check_machine: Callable[[Options], object]
    """Check that this machine can build it."""
    check_options: Callable[[Options, str | None], object] = _accept
    """Check the options for a precision; None: as the graph is, which is not loaded yet. Needs no engine."""
    check_graph: Callable[[Options, onnx.ModelProto, Path], object] = _accept
    """Check that the engine takes the graph of a file."""

    @property
    def needs_gpu(self) -> bool:
        """Whether what is built runs on NVIDIA GPUs alone."""
        return KINDS[self.name].needs_gpu


def _tensorrt(flavor: str, doctor: DoctorRow) -> EngineBuilder[TensorRtOptions]:
    return EngineBuilder(
        flavor,
        TensorRtOptions,
        build=partial(tensorrt.build_tensorrt, flavor=flavor),
        doctor=doctor,
        check_machine=partial(tensorrt.check_machine, flavor),
        check_options=lambda options, precision: tensorrt.check_options(flavor, options),
        check_graph=tensorrt.check_graph,
    )


ENGINES: dict[str, EngineBuilder[Any]] = {
    "onnxruntime": EngineBuilder(
        "onnxruntime",
        OnnxRuntimeOptions,
        build=onnxruntime.build_onnxruntime,
        doctor=DoctorRow(("onnxruntime", "onnxruntime-gpu"), "onnxruntime", onnxruntime.list_devices),
        check_machine=onnxruntime.check_machine,
    ),
    "openvino": EngineBuilder(
        "openvino",
        OpenVinoOptions,
        build=openvino.build_openvino,
        doctor=DoctorRow(("openvino",), "openvino", openvino.list_devices),
        check_machine=lambda options: openvino.load_openvino(),
        check_options=openvino.check_options,
    ),
    "tensorrt": _tensorrt(
        "tensorrt",
        DoctorRow(
            ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt", tensorrt.list_devices, "needs an NVIDIA GPU"
        ),
    ),
    "tensorrt-rtx": _tensorrt(
        "tensorrt-rtx",
        DoctorRow(
            ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
            "tensorrt_rtx",
            tensorrt.list_devices,
            "builds here; running needs an NVIDIA GPU",
        ),
    ),
}

#: Options of the command line that are not named as the field is.
_FLAGS = {"targets": "--target", "workspace_mb": "--workspace"}


def engine_builder(engine: str) -> EngineBuilder[Any]:
    """Return the entry of an engine kind. Raise M2HError for an unknown one."""
    if engine not in ENGINES:
        raise M2HError(f"engine '{engine}': choose one of {', '.join(ENGINES)}")
    return ENGINES[engine]


def options_of(engine: str, given: Mapping[str, Any]) -> EngineOptions:
    """Make the options of an engine kind from those of the command line, by field; None was not given.

    Raises M2HError for an option that belongs to another engine.
    """
    chosen = engine_builder(engine).options
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        owners = [other for other, builder in ENGINES.items() if name in _names(builder.options)]
        if engine not in owners:
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise M2HError(f"{flag} applies only to --engine {' or '.join(owners)}")
    options: EngineOptions = chosen(**values)
    return options


def options_like(engine: str, recorded: Mapping[str, Any]) -> EngineOptions:
    """Make the options of an engine kind from a manifest's, as far as they are options of the build."""
    chosen = engine_builder(engine).options
    options: EngineOptions = chosen(**{name: recorded[name] for name in _names(chosen) if recorded.get(name)})
    return options


def _names(options: type[EngineOptions]) -> list[str]:
    return [field.name for field in fields(options)]
