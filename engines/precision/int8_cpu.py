"""INT8 for CPUs: Q/DQ as the engine's own kernels fuse it, float32 around it, by the engine's own quantizer.

No CPU gains from FP16 around INT8: it converts every tensor to float32 and back. OpenVINO quantizes by NNCF, per
channel in front of depthwise convolutions; ONNX Runtime by its own tool, with a scale for every convolution's result,
which its integer kernels need.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import shape_inference

from engines.precision.calibration import Bounds, Calibration
from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.onnx_graph.edit import copy_of


def quantize_for_openvino(
    proto: onnx.ModelProto, layers: Sequence[str], calibration: Calibration, smooth: float | None = None
) -> onnx.ModelProto:
    """Insert Q/DQ around `layers` with NNCF: its ranges, and its fast bias correction.

    `smooth` is SmoothQuant's alpha for linear layers, 0 to 1; None leaves their activations as they are.

    Raises:
        M2HError: NNCF is not installed, lacks the calibrator, or cannot quantize the graph.
    """
    nncf = _load_nncf()
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    estimators = {"max": RangeEstimatorParametersSet.MINMAX, "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE}
    if calibration.method not in estimators:
        raise M2HError(f"NNCF, which quantizes for OpenVINO, has no calibrator {calibration.method}: use max")
    wanted, frames, name = set(layers), calibration.frames.frames, proto.graph.input[0].name
    others = [node.name for node in proto.graph.node if node.name not in wanted]
    plain = shape_inference.infer_shapes(copy_of(proto))
    try:
        with _quiet("nncf"):
            return nncf.quantize(
                plain,
                nncf.Dataset(frames, lambda frame: {name: frame}),
                subset_size=len(frames),
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                # SmoothQuant is a step of transformers only.
                model_type=None if smooth is None else nncf.ModelType.TRANSFORMER,
                advanced_parameters=AdvancedQuantizationParameters(
                    activations_range_estimator_params=estimators[calibration.method],
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1 if smooth is None else smooth),
                ),
            )
    except Exception as error:  # NNCF passes on the errors of its dependencies
        raise M2HError(f"NNCF cannot quantize the graph: {reason(error)}") from error


def quantize_for_onnxruntime(
    proto: onnx.ModelProto, layers: Sequence[str], ranges: Mapping[str, Bounds]
) -> onnx.ModelProto:
    """Insert Q/DQ around `layers` with ONNX Runtime's quantizer: uint8 activations, int8 weights per channel.

    `ranges` holds the inputs and the outputs of the layers.

    Raises:
        M2HError: ONNX Runtime cannot quantize the graph.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    wanted = set(layers)
    plain = shape_inference.infer_shapes(copy_of(proto))
    kinds = sorted({node.op_type for node in plain.graph.node if node.name in wanted})
    data = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()}
    try:
        with _quiet("root"):
            quantizer = QDQQuantizer(
                plain,
                True,  # per channel
                False,  # all 8 bits: processors without VNNI may saturate, and the self-test tells
                QuantType.QInt8,
                QuantType.QUInt8,
                TensorsData(CalibrationMethod.MinMax, data),
                list(layers),
                [],
                kinds,
                {"MatMulConstBOnly": True, "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1}},
            )
            quantizer.quantize_model()
            quantizer.model.topological_sort()
            result: onnx.ModelProto = quantizer.model.model
            return result
    except Exception as error:  # ONNX Runtime's quantizer passes on the errors of its dependencies
        raise M2HError(f"ONNX Runtime's quantizer cannot quantize the graph: {reason(error)}") from error


def layer_results(proto: onnx.ModelProto, layers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the tensors that `layers`, by name with the activation that they read, read and write."""
    written = [node.output[0] for node in proto.graph.node if node.name in layers]
    return tuple(dict.fromkeys([*layers.values(), *written]))


def _load_nncf() -> Any:
    # NNCF would report every use to its makers.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        with _quiet("nncf"):
            import nncf
    except ImportError as error:
        raise missing_extra("nncf", "precision", "INT8 for OpenVINO", error=error) from None
    return nncf


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep a quantizer's log and progress bars, which go to stdout, out of the command's own output."""
    log = logging.getLogger(None if logger == "root" else logger)
    level = log.level
    with contextlib.redirect_stdout(io.StringIO()):
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)
