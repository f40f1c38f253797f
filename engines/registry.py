"""The engine kinds that can be built, one entry each.

Importing this module needs no engine and no onnx: the modules of the kinds import them when they build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engines.onnxruntime import (
    OnnxRuntimeOptions,
    build_onnxruntime,
    check_onnxruntime,
    check_precision,
    onnxruntime_tool,
)
from engines.openvino import OpenVinoOptions, build_openvino, check_hint, load_openvino
from engines.options import EngineOptions, Tool
from engines.targets import runs_rtx
from engines.tensorrt import TensorRtOptions, build_tensorrt, check_flavor, check_graph, check_options
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.driver import extra_here
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.choices import check_choice
from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.version import installed_version

if TYPE_CHECKING:
    import onnx

    from m2h_deploy.backends.driver import Gpu, NoGpu
    from m2h_deploy.profiling.hardware import Nvidia

Options = TypeVar("Options", bound=EngineOptions)


@dataclass(frozen=True)
class DoctorRow:
    """Functions by which `doctor` describes the devices of an engine."""

    devices: Callable[[Any, Nvidia], tuple[str, ...]]
    """Function of (module, GPUs of this machine) to the devices that the engine can use here."""
    note: Callable[[Nvidia, NoGpu | None], str] = lambda nvidia, missing: ""
    """Function of (GPUs of this machine, why a GPU cannot be used) to what limits the engine here; empty if nothing."""


def _accept(*arguments: Any) -> None:
    """Accept anything: the default check."""


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
    """Check the options for a precision; None: that of the graph, which is not loaded yet. Needs no engine."""
    check_graph: Callable[[Options, onnx.ModelProto, Path], object] = _accept
    """Check that the engine supports the graph of a file."""
    lowering_tool: Callable[[Options, str], Tool] = lambda options, precision: "modelopt"
    """The tool that lowers a graph to a precision; raises M2HError if the engine gains nothing from it."""


def _tensorrt(flavor: str, doctor: DoctorRow) -> EngineBuilder[TensorRtOptions]:
    return EngineBuilder(
        flavor,
        TensorRtOptions,
        build=partial(build_tensorrt, flavor=flavor),
        check_machine=partial(check_flavor, flavor),
        check_options=lambda options, precision: check_options(flavor, options, precision),
        check_graph=check_graph,
        doctor=doctor,
    )


def _gpus(module: Any, nvidia: Nvidia) -> tuple[str, ...]:
    return tuple(f"{gpu.name} ({gpu.compute_capability})" for gpu in nvidia.gpus)


def _tensorrt_note(nvidia: Nvidia, missing: NoGpu | None) -> str:
    if missing is not None and not nvidia.gpus:
        return f"needs an NVIDIA GPU: {missing}"
    return _running_note("tensorrt", missing)


def _running_note(kind: str, missing: NoGpu | None) -> str:
    """Say what a plan lacks to run on a GPU that is here."""
    if missing is not None:
        return f"plans do not run here: {missing}"
    packages = [name for name in ("cuda-bindings", "cuda-core") if installed_version(name) is None]
    if not packages:
        return ""
    return f"running a plan needs {' and '.join(packages)}: {install_extra(extra_here(KINDS[kind].extra))}"


def _rtx_gpus(module: Any, nvidia: Nvidia) -> tuple[str, ...]:
    return tuple(f"{gpu.name} ({gpu.compute_capability})" for gpu in nvidia.gpus if _runs_on(gpu))


def _runs_on(gpu: Gpu) -> bool:
    return gpu.compute_capability is None or runs_rtx(gpu.compute_capability)


def _rtx_note(nvidia: Nvidia, missing: NoGpu | None) -> str:
    others = [f"{gpu.name}, {gpu.compute_capability}" for gpu in nvidia.gpus if not _runs_on(gpu)]
    if others:
        return f"does not run on this GPU ({'; '.join(others)}): use tensorrt"
    if missing is not None and not nvidia.gpus:
        return f"builds without a GPU; running needs an NVIDIA GPU: {missing}"
    return _running_note("tensorrt-rtx", missing)


def _onnxruntime_note(nvidia: Nvidia, missing: NoGpu | None) -> str:
    """Say which of two installed packages is imported: they share one folder, and the last one installed is there."""
    versions = {name: installed_version(name) for name in KINDS["onnxruntime"].distributions}
    if None in versions.values():
        return ""
    import onnxruntime

    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return (
        f"{' and '.join(f'{name} {version}' for name, version in versions.items())} overwrite each other: "
        f"import onnxruntime gives {onnxruntime.__version__} of {'onnxruntime-gpu' if cuda else 'onnxruntime'}"
    )


def _providers(module: Any, nvidia: Nvidia) -> tuple[str, ...]:
    return tuple(provider.removesuffix("ExecutionProvider") for provider in module.get_available_providers())


_BUILDERS: tuple[EngineBuilder[Any], ...] = (
    EngineBuilder(
        "onnxruntime",
        OnnxRuntimeOptions,
        build=build_onnxruntime,
        check_machine=check_onnxruntime,
        lowering_tool=onnxruntime_tool,
        check_options=check_precision,
        doctor=DoctorRow(_providers, _onnxruntime_note),
    ),
    EngineBuilder(
        "openvino",
        OpenVinoOptions,
        build=build_openvino,
        check_machine=lambda options: load_openvino(),
        check_options=check_hint,
        lowering_tool=lambda options, precision: "nncf" if precision == "int8" else "modelopt",
        doctor=DoctorRow(lambda module, nvidia: tuple(module.Core().available_devices)),
    ),
    _tensorrt("tensorrt", DoctorRow(_gpus, _tensorrt_note)),
    _tensorrt("tensorrt-rtx", DoctorRow(_rtx_gpus, _rtx_note)),
)

ENGINES = {builder.name: builder for builder in _BUILDERS}

#: Command-line options whose name differs from that of the field.
_FLAGS = {"targets": "--target", "workspace_mb": "--workspace"}


def engine_builder(engine: str) -> EngineBuilder[Any]:
    """Return the entry of an engine kind. Raises M2HError for an unknown one."""
    check_choice("engine", engine, ENGINES)
    return ENGINES[engine]


def options_of(engine: str, given: Mapping[str, Any]) -> EngineOptions:
    """Make the options of an engine kind from command-line values by field name; None means not given.

    Raises:
        M2HError: An option belongs to another engine.
    """
    chosen = engine_builder(engine).options
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        owners = [kind for kind, builder in ENGINES.items() if name in builder.options.__dataclass_fields__]
        if engine not in owners:
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            raise M2HError(f"{flag} applies only to --engine {' or '.join(owners)}")
    options: EngineOptions = chosen(**values)
    return options
