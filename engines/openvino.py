"""Build for OpenVINO: the graph as an IR, OpenVINO's own format (`model.xml` and `model.bin`).

By default OpenVINO computes in bfloat16 on a CPU that supports it, so every bundle names the precision to compute in.
An IR is used rather than the ONNX file because reading one needs no importer on the device, and because the importer
crashes (seen with 2026.4.1) on a graph with local functions: they are inlined here.
"""

from __future__ import annotations

import errno
import os
import platform
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from engines.options import EngineOptions, check_cpu_precision
from m2h_deploy.backends import BackendOptions
from m2h_deploy.blocks import check_patterns, matches
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.causes import NO_SPACE, no_space
from m2h_deploy.choices import ComputePrecision, check_choice
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import library_path, write_bytes
from m2h_deploy.onnx_graph.files import read_onnx

if TYPE_CHECKING:
    import onnx

ENGINE_FILE = "model.xml"

#: Types for the floating-point parts of a bundle unless a hint is given: the first that the processor supports, else
#: f32. OpenVINO's FP16 kernels for x86 are slower than float32 (0.74 times as fast where bfloat16 is 1.4 times).
_HALF: tuple[ComputePrecision, ...] = ("f16", "bf16") if platform.machine() in ("aarch64", "arm64") else ("bf16", "f16")
_PREFERRED: dict[str, tuple[ComputePrecision, ...]] = {"fp32": (), "fp16": _HALF, "int8": ("bf16",)}


@dataclass(frozen=True)
class OpenVinoOptions(EngineOptions):
    """Build options for OpenVINO, and the defaults that the bundle records."""

    threads: int | None = None
    """CPU threads; None: OpenVINO's choice."""
    hint: ComputePrecision | None = None
    """Type to compute the floating-point parts in; None: the first of `preferred_precisions` that compiles."""
    float32: tuple[str, ...] = ()
    """Blocks or globs (`m2h_deploy.blocks.matches`) that are computed in float32 whatever the hint is."""

    def in_float32(self) -> OpenVinoOptions:
        """Return the same options without a hint and without float32 blocks."""
        return replace(self, hint=None, float32=())

    def __post_init__(self) -> None:
        BackendOptions(threads=self.threads)  # refuses an invalid number of threads
        if self.hint is not None:
            check_choice("hint", self.hint, ComputePrecision)


def build_openvino(model: Path, folder: Path, precision: str, options: OpenVinoOptions | None = None) -> EngineInfo:
    """Convert the ONNX file `model`, which is already in `precision`, to an IR in `folder`.

    OpenVINO computes the floating-point parts in the type of the hint, recorded as the option `inference_precision`; a
    processor that lacks it computes in f32. FP16 stores the weights in half the size whatever the hint is.

    Returns:
        The engine's entry in the manifest.

    Raises:
        M2HError: OpenVINO rejects the graph, or a hint other than f32 contradicts precision fp32.
    """
    from m2h_deploy.onnx_graph.functions import inline_functions

    options = options or OpenVinoOptions()
    check_hint(options, precision)
    ov = load_openvino()
    # Without ONNX Runtime, the effect of a coarser type on the network cannot be measured here.
    measured = find_spec("onnxruntime") is not None
    core = ov.Core()
    proto, _ = inline_functions(read_onnx(model))
    check_patterns(proto, options.float32, "float32")
    network = _read(ov, proto, model)
    chosen = options.hint or (_compilable(core, network, precision) if measured else "f32")
    try:
        with library_path(folder / ENGINE_FILE) as file:
            ov.save_model(network, file, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        # OpenVINO gives no cause, and removes the partial file.
        if no_space(folder, 2 * model.stat().st_size):
            raise OSError(errno.ENOSPC, NO_SPACE, os.fspath(folder / ENGINE_FILE)) from None
        raise M2HError(f"cannot write {folder / ENGINE_FILE}: {_reason(error)}") from None
    if options.float32:
        _keep_float32(folder / ENGINE_FILE, options.float32)
    return EngineInfo(
        kind="openvino",
        version=ov.__version__.split("-")[0],
        precision=precision,  # type: ignore[arg-type]
        file=ENGINE_FILE,
        options={
            "device": "CPU",
            "inference_precision": chosen,
            "performance_hint": "LATENCY",
            **({"threads": options.threads} if options.threads else {}),
            **({"float32": list(options.float32)} if options.float32 else {}),
        },
    )


def _keep_float32(file: Path, patterns: tuple[str, ...]) -> None:
    """Mark the layers of an IR that match `patterns` as precise: OpenVINO's Python API cannot set that attribute."""
    tree = ElementTree.parse(file)
    for layer in tree.iterfind("layers/layer"):
        if matches(layer.get("name", ""), patterns):
            info = layer.find("rt_info")
            marked = ElementTree.SubElement(layer, "rt_info") if info is None else info
            ElementTree.SubElement(marked, "attribute", {"name": "precise", "version": "0"})
    write_bytes(file, ElementTree.tostring(tree.getroot(), xml_declaration=True, encoding="utf-8"))


def preferred_precisions(core: Any, precision: str) -> list[ComputePrecision]:
    """Return the types that suit the floating-point parts of a bundle on this processor, the best first."""
    from m2h_deploy.backends.openvino import available_precision

    return [*(hint for hint in _PREFERRED[precision] if available_precision(core, "CPU", hint) == hint), "f32"]


def _compilable(core: Any, network: Any, precision: str) -> ComputePrecision:
    """Return the best type in which OpenVINO compiles the network.

    Some INT8 graphs have no kernels in bfloat16 ("No suitable implementations", seen with 2026.4.1).
    """
    *better, plain = preferred_precisions(core, precision)
    for hint in better:
        try:
            core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": hint})
        except RuntimeError:
            continue
        return hint
    return plain


def check_hint(options: OpenVinoOptions, precision: str | None) -> None:
    """Raise M2HError if the hint contradicts the precision; None is a precision that is not known yet."""
    check_cpu_precision(precision)
    if precision not in (None, *_PREFERRED):
        raise M2HError(f"precision '{precision}': choose one of {', '.join(_PREFERRED)}")
    if options.float32 and "f32" in (options.hint, {"fp32": "f32"}.get(precision or "")):
        raise M2HError("everything is computed in float32 already: leave float32 out")
    if precision == "fp32" and options.hint not in (None, "f32"):
        raise M2HError(f"precision fp32 computes in f32: for {options.hint} build with --precision fp16")


def load_openvino() -> Any:
    """Import OpenVINO. Raises M2HError, naming the extra, if it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "openvino", "the engine", error=error) from None
    return openvino


def _read(ov: Any, proto: onnx.ModelProto, source: Path) -> Any:
    try:
        return ov.Core().read_model(proto.SerializeToString())
    except RuntimeError as error:
        raise M2HError(f"OpenVINO does not take {source}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    from m2h_deploy.backends.openvino import reason

    return reason(error)
