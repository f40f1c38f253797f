"""OpenVINO: the graph as an IR, OpenVINO's own format (`model.xml` and `model.bin`).

OpenVINO computes in bfloat16 by itself on a CPU that has it, so every bundle names the precision that it is to
compute in. An IR is used rather than the ONNX file because reading one needs no importer on the device, and because
the importer ends the process (seen with 2026.4.1) on a graph with local functions: they are inlined here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import onnx

from engines.functions import inline_functions
from engines.graph import load_graph
from m2h_deploy.bundle import EngineInfo
from m2h_deploy.errors import M2HError, missing_extra

ENGINE_FILE = "model.xml"

Hint = Literal["f32", "bf16", "f16"]

#: What a bundle computes in when nobody says. The parts of an INT8 graph that stay in floating point are float32, as
#: the graph has them.
_DEFAULT_HINTS: dict[str, Hint] = {"fp32": "f32", "fp16": "f16", "int8": "f32"}


def build_openvino(
    model: Path, folder: Path, *, precision: str, threads: int | None = None, hint: Hint | None = None
) -> EngineInfo:
    """Convert the ONNX file `model`, which is already in `precision`, into `folder`; what a bundle says about it.

    `hint` is what OpenVINO computes the floating-point parts in; a CPU that lacks it goes by the graph. FP16 keeps the
    weights in half their size whatever the hint is. Raises M2HError where OpenVINO does not take the graph, and where
    a `hint` other than f32 would make a bundle of precision fp32 untrue.
    """
    chosen = _check_hint(precision, hint)
    ov = _load_openvino()
    proto, _ = inline_functions(load_graph(model))
    network = _read(ov, proto, model)
    try:
        ov.save_model(network, folder / ENGINE_FILE, compress_to_fp16=precision == "fp16")
    except RuntimeError as error:
        raise M2HError(f"cannot write {folder / ENGINE_FILE}: {_reason(error)}") from None
    return EngineInfo(
        kind="openvino",
        version=ov.__version__.split("-")[0],
        precision=precision,  # type: ignore[arg-type]
        file=ENGINE_FILE,
        options={
            "device": "CPU",
            "inference_precision": chosen,
            "performance_hint": "LATENCY",
            **({"threads": threads} if threads else {}),
        },
    )


def _check_hint(precision: str, hint: Hint | None) -> Hint:
    if precision not in _DEFAULT_HINTS:
        raise M2HError(f"precision '{precision}': choose one of {', '.join(_DEFAULT_HINTS)}")
    chosen = hint or _DEFAULT_HINTS[precision]
    if chosen not in _DEFAULT_HINTS.values() and chosen != "bf16":
        raise M2HError(f"hint '{chosen}': choose one of f32, bf16, f16")
    if precision == "fp32" and chosen != "f32":
        raise M2HError(f"precision fp32 computes in f32: for {chosen} build with --precision fp16")
    return chosen


def _load_openvino() -> Any:
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
