"""Convert to FP16, INT8 and FP8 in the ONNX graph itself, as explicit casts and Q/DQ nodes.

TensorRT 11 and TensorRT-RTX build exactly the types in the graph (strong typing), TensorRT 10 does so on request. The
converted file is both checked on a CPU and compiled.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from engines.options import Tool
from engines.precision.calibration import (
    Bounds,
    Calibration,
    CalibrationFrames,
    CalibrationRecord,
    magnitude,
    measure_ranges,
    record_of,
)
from engines.precision.compare import CpuReference
from engines.precision.fp8 import fp8_layers, insert_fp8
from engines.precision.headroom import activation_ranges
from engines.precision.int8_cpu import layer_results, quantize_for_onnxruntime, quantize_for_openvino
from engines.precision.islands import Island, WeightRisk, islands_and_risks
from engines.precision.modelopt import quiet_modelopt, require_modelopt
from engines.precision.quantization import (
    QuantPolicy,
    candidates,
    chosen_layers,
    insert_qdq,
    insert_weight_dq,
    quantized_layers,
)
from engines.precision.raw_pixels import put_network, take_network
from engines.precision.sensitivity import choose_blocks, simulate_int8
from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder, whole_file
from m2h_deploy.onnx_graph.files import onnx_sha256, read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions, outline_functions
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.precision import default_opset, graph_precision

Precision = Literal["fp16", "int8", "fp8"]
IO = Literal["fp32", "fp16"]

#: Frames that blocks are compared on when a minimum PSNR is requested.
SENSITIVITY_FRAMES = 2


@dataclass(frozen=True)
class PrecisionReport:
    """Changes of a conversion to FP16, INT8 or FP8, and the resulting PSNR."""

    precision: Precision
    io: IO
    islands: tuple[Island, ...]
    """Nodes that stayed float32."""
    risks: tuple[WeightRisk, ...]
    """Weights with values that FP16 cannot hold."""
    quantized: tuple[str, ...] = ()
    """Layers that became INT8 or FP8."""
    calibration: CalibrationRecord | None = None
    psnr: dict[str, float] = field(default_factory=dict)
    """Decibels by output against the float32 graph, on the held-out frames; empty without frames."""


@dataclass(frozen=True)
class _Source:
    """An exported float32 graph and the network in it: the same graph unless it is a sensor graph."""

    exported: onnx.ModelProto
    network: onnx.ModelProto
    info: GraphInfo


def to_fp16(
    onnx_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    io: IO = "fp32",
    frames: CalibrationFrames | None = None,
) -> PrecisionReport:
    """Write the float32 graph at `onnx_path` as FP16 to `out_path`.

    Inputs and outputs stay float32 unless `io` is "fp16". Reductions, the last layers of depth and the division of the
    normals stay float32. With `frames`, nodes whose tensors or sums FP16 cannot represent on them
    (`islands.find_islands`) stay float32 too, and the held-out frames give the PSNR. In a sensor graph only the network
    is converted, and `frames` are the network's.

    Raises:
        M2HError: The input is invalid; no file is written then.
    """
    require_modelopt()
    source = _load_float32(onnx_path, io)
    plain, calls = inline_functions(source.network)
    islands, risks = islands_and_risks(plain, _largest_values(plain, frames.frames) if frames else None)
    result = outline_functions(_autocast(plain, islands, io), calls, source.network)
    report = PrecisionReport("fp16", io, islands, risks)
    return _finish(source, result, report, Path(out_path), frames.held_out if frames else ())


def to_int8(
    onnx_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    calibration: Calibration,
    tool: Tool = "modelopt",
    policy: QuantPolicy | None = None,
    min_psnr: float | None = None,
    io: IO = "fp32",
) -> PrecisionReport:
    """Write the float32 graph at `onnx_path` with Q/DQ around the layers `policy` names, as an engine wants it.

    Weights are int8 per output channel, with ranges of the activations measured on `calibration.frames`; its held-out
    frames give the PSNR. With `min_psnr` (decibels, every output) the most sensitive blocks are not quantized until the
    rest reaches it on the first calibration frames. By `tool`:

    - `modelopt`, for GPUs: activations int8 per tensor, symmetric; FP16 around.
    - `nncf`, for OpenVINO, and `onnxruntime`, for its CPU kernels: activations uint8; float32 around.

    Raises:
        M2HError: The input is invalid; no file is written then.
    """
    if tool == "modelopt":
        require_modelopt()
    source = _load_float32(onnx_path, io)
    policy, half = policy or QuantPolicy(), tool == "modelopt"
    if not half and io == "fp16":
        raise M2HError("INT8 for a CPU has float32 around it: leave io at fp32")
    if policy.smooth_quant is not None and (tool != "nncf" or policy.weights_only):
        raise M2HError("smooth_quant is a step of NNCF, which quantizes for OpenVINO: leave it out of the policy")
    plain, calls = inline_functions(source.network)
    # FP16 is around INT8 on GPUs only.
    few = calibration.frames.frames[:SENSITIVITY_FRAMES]
    islands, risks = islands_and_risks(plain, _largest_values(plain, few)) if half else ((), ())
    kept = {island.node for island in islands}
    layers = tuple(name for name in chosen_layers(plain, policy) if name not in kept)
    digest = onnx_sha256(onnx_path)
    if policy.weights_only:
        if min_psnr is not None:
            raise M2HError("a least PSNR applies only to INT8 activations: leave it out with weights_only")
        quantized = insert_weight_dq(plain, layers)
    else:
        quantized = _quantize(plain, layers, digest, calibration, policy, tool, min_psnr)
    if half:
        quantized = _autocast(quantized, islands, io)
    result = outline_functions(quantized, calls, source.network)
    record = record_of(calibration, digest)
    report = PrecisionReport("int8", io, islands, risks, quantized_layers(result), record)
    return _finish(source, result, report, Path(out_path), calibration.frames.held_out)


def _quantize(
    plain: onnx.ModelProto,
    layers: tuple[str, ...],
    digest: str,
    calibration: Calibration,
    policy: QuantPolicy,
    tool: Tool,
    min_psnr: float | None,
) -> onnx.ModelProto:
    # All candidates are measured, so that another policy finds its ranges in the cache.
    inputs = candidates(plain)
    ranges: dict[str, Bounds] = {}
    if tool != "nncf" or min_psnr is not None:
        tensors = layer_results(plain, inputs)
        ranges = measure_ranges(plain, digest, tensors, calibration)
    if min_psnr is not None:
        few = calibration.frames.frames[:SENSITIVITY_FRAMES]
        layers = choose_blocks(
            plain, layers, ranges, few, min_psnr, partial(simulate_int8, symmetric=tool == "modelopt")
        )
    if tool == "nncf":
        return quantize_for_openvino(plain, layers, calibration, policy.smooth_quant)
    if tool == "onnxruntime":
        return quantize_for_onnxruntime(plain, layers, ranges)
    wanted = {inputs[name]: magnitude(ranges[inputs[name]]) for name in layers}
    return insert_qdq(plain, layers, wanted, calibration.frames.frames[0])


def to_fp8(
    onnx_path: str | os.PathLike[str],
    out_path: str | os.PathLike[str],
    *,
    calibration: Calibration,
    policy: QuantPolicy | None = None,
    min_psnr: float | None = None,
    io: IO = "fp32",
) -> PrecisionReport:
    """Write the float32 graph at `onnx_path` with E4M3 Q/DQ around wide layers that `policy` names, the rest in FP16.

    Weights are scaled per output channel, activations per tensor by the largest value on `calibration.frames`; its
    held-out frames give the PSNR. `min_psnr` as in `to_int8`. A policy for weights only is not supported.

    Raises:
        M2HError: The input is invalid; no file is written then.
    """
    require_modelopt()
    source = _load_float32(onnx_path, io)
    policy = policy or QuantPolicy()
    if policy.weights_only:
        raise M2HError("a policy with weights_only applies to int8: leave it out, or choose int8")
    if policy.smooth_quant is not None:
        raise M2HError("smooth_quant is a step of NNCF, which quantizes to int8 for OpenVINO: leave it out")
    plain, calls = inline_functions(source.network)
    few = calibration.frames.frames[:SENSITIVITY_FRAMES]
    islands, risks = islands_and_risks(plain, _largest_values(plain, few))
    kept = {island.node for island in islands}
    layers = tuple(name for name in fp8_layers(plain, policy) if name not in kept)
    digest, inputs = onnx_sha256(onnx_path), candidates(plain)
    ranges = measure_ranges(plain, digest, tuple(dict.fromkeys(inputs.values())), calibration)
    if min_psnr is not None:
        layers = choose_blocks(plain, layers, ranges, few, min_psnr, insert_fp8)
    result = outline_functions(_autocast(insert_fp8(plain, layers, ranges), islands, io), calls, source.network)
    report = PrecisionReport("fp8", io, islands, risks, quantized_layers(result), record_of(calibration, digest))
    return _finish(source, result, report, Path(out_path), calibration.frames.held_out)


def _load_float32(path: str | os.PathLike[str], io: IO) -> _Source:
    proto = read_onnx(path)
    if graph_precision(proto, path) != "fp32":
        raise M2HError(f"{path} is not a float32 graph: give the file that m2h-deploy export wrote")
    info = GraphInfo.read(proto, path)
    if info.sensor is not None and io == "fp16":
        raise M2HError(f"{path} is a sensor graph, whose input and output types are fixed: leave io at fp32")
    return _Source(proto, take_network(proto) if info.sensor is not None else proto, info)


def _largest_values(plain: onnx.ModelProto, frames: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Return the largest magnitude of each activation over `frames`."""
    return {name: values.largest for name, values in activation_ranges(plain, frames).items()}


def _autocast(proto: onnx.ModelProto, islands: Sequence[Island], io: IO) -> onnx.ModelProto:
    """Convert to FP16 with ModelOpt, with casts around the islands."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    with scratch_folder("m2h-fp16-") as folder, quiet_modelopt():
        source = folder / "float.onnx"
        onnx.save(proto, source)
        try:
            return convert_to_mixed_precision(
                os.fspath(source),
                low_precision_type="fp16",
                nodes_to_exclude=[f"{re.escape(island.node)}$" for island in islands],
                # The islands already cover the ranges; without this ModelOpt would measure them on random input.
                data_max=np.inf,
                keep_io_types=io == "fp32",
                opset=default_opset(proto),
                providers=["cpu"],
            )
        except Exception as error:  # ModelOpt passes on the errors of its dependencies
            raise M2HError(f"NVIDIA ModelOpt cannot convert the graph to FP16: {reason(error)}") from error


def _finish(
    source: _Source, result: onnx.ModelProto, report: PrecisionReport, out: Path, frames: Sequence[NDArray[np.float32]]
) -> PrecisionReport:
    """Copy the metadata, write the file atomically and measure its PSNR."""
    whole = put_network(source.exported, result) if source.info.sensor is not None else result
    replace(source.info, precision=report.precision).write(whole)
    whole.producer_name, whole.producer_version = source.exported.producer_name, source.exported.producer_version
    with whole_file(out) as temporary:
        onnx.save(whole, temporary)
        psnr = CpuReference(source.network, frames).psnr(result) if frames else {}
    return replace(report, psnr=psnr)
