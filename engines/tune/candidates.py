"""The engines and precisions that are worth building on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from engines.options import Tool
from engines.registry import ENGINES, engine_builder, options_of
from engines.targets import runs_rtx
from m2h_deploy.backends import KINDS
from m2h_deploy.backends.driver import capability_here, extra_here, missing_gpu
from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.version import installed_version


@dataclass(frozen=True)
class Candidate:
    """A way to build the network."""

    engine: str
    precision: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of the engine, by field name."""
    note: str = ""
    """End of the name, where several candidates have the same engine and precision: `bf16`."""

    @property
    def name(self) -> str:
        """A name for tables and folders: `openvino-int8-bf16`."""
        return "-".join(part for part in (self.engine, self.precision, self.note) if part)

    @property
    def tool(self) -> Tool:
        """The tool that lowers the graph for it."""
        return engine_builder(self.engine).lowering_tool(options_of(self.engine, self.options), self.precision)


@dataclass(frozen=True)
class Skipped:
    """An engine or a precision that cannot be tried on this machine, and the reason."""

    name: str
    reason: str


def candidates_here(wanted: tuple[str, ...] | None) -> tuple[list[Candidate], list[Skipped]]:
    """Return the candidates of the `wanted` engines, by default of all that this machine runs, float32 first.

    Raises:
        M2HError: A wanted engine cannot run here, or none can.
    """
    for engine in wanted or ():
        engine_builder(engine)
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    for engine in wanted or tuple(ENGINES):
        obstacle = _obstacle(engine)
        if obstacle is not None and wanted is not None:
            raise M2HError(f"the engine {engine} does not run here: {obstacle}")
        if obstacle is not None:
            skipped.append(Skipped(engine, obstacle))
        else:
            found += _of(engine)
    if not found:
        raise M2HError(f"no engine runs here: {'; '.join(f'{entry.name}: {entry.reason}' for entry in skipped)}")
    lowered = [candidate for candidate in found if candidate.precision != "fp32"]
    if lowered and find_spec("modelopt") is None:
        skipped.append(Skipped("fp16, int8", f"lowering is not installed: {install_extra('precision')}"))
        found = [candidate for candidate in found if candidate.precision == "fp32"]
    return sorted(found, key=lambda candidate: candidate.precision != "fp32"), skipped


def _obstacle(engine: str) -> str | None:
    """Return why an engine cannot run on this machine; None if no reason is known."""
    builder, kind = engine_builder(engine), KINDS[engine]
    try:
        builder.check_machine(builder.options())
    except M2HError as error:
        return str(error)
    if not kind.needs_gpu:
        return None
    missing = missing_gpu()
    if missing is not None:
        return str(missing)
    if engine == "tensorrt-rtx" and not runs_rtx(capability_here()):
        return f"it does not support compute capability {capability_here()}: use tensorrt"
    absent = [name for name in ("cuda-bindings", "cuda-core") if installed_version(name) is None]
    return f"{' and '.join(absent)} missing: {install_extra(extra_here(kind.extra))}" if absent else None


def _of(engine: str) -> list[Candidate]:
    if engine == "onnxruntime":
        return [Candidate(engine, "fp32"), Candidate(engine, "int8")]
    if engine == "openvino":
        return _openvino()
    capability = capability_here()
    eight_bits = capability is not None and tuple(map(int, capability.split("."))) >= (8, 9)
    precisions = ("fp32", "fp16", "int8", *(("fp8",) if eight_bits else ()))
    return [Candidate(engine, precision) for precision in precisions]


def _openvino() -> list[Candidate]:
    import openvino

    from m2h_deploy.backends.openvino import available_precision

    core = openvino.Core()
    half = [hint for hint in ("bf16", "f16") if available_precision(core, "CPU", hint) == hint]
    return [
        Candidate("openvino", "fp32"),
        *(Candidate("openvino", "fp16", {"hint": hint}, hint) for hint in half),
        Candidate("openvino", "int8", {"hint": "f32"}, "f32"),
        *(Candidate("openvino", "int8", {"hint": hint}, hint) for hint in half if hint == "bf16"),
    ]


def thread_counts(engine: str) -> tuple[int | None, ...]:
    """Return the numbers of threads to measure: the powers of two below all cores, and all; None on a GPU."""
    if KINDS[engine].needs_gpu:
        return (None,)
    cores = len(os.sched_getaffinity(0))
    counts = [1 << power for power in range(cores.bit_length()) if 1 << power < cores]
    return (*counts, cores)
