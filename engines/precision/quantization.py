"""INT8 by explicit Q/DQ: choose the layers and quantize them with NVIDIA ModelOpt's post-training quantization."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.precision.modelopt import quiet_modelopt
from m2h_deploy.blocks import KEPT_IN_FLOAT, check_patterns, matches
from m2h_deploy.causes import reason
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import scratch_folder
from m2h_deploy.files.text import read_json
from m2h_deploy.onnx_graph.edit import copy_of, drop_unused_initializers, replace_nodes

#: Operators that INT8 speeds up; their weight is a constant second input.
QUANTIZABLE = ("Conv", "MatMul", "Gemm")


@dataclass(frozen=True)
class QuantPolicy:
    """Which layers become INT8: those that `quantize` names and `keep` does not. See `m2h_deploy.blocks.matches`.

    The default keeps the first and the last layers; layers that work on a single pixel or on means (gates, pooled
    branches), where INT8 loses accuracy and saves nothing; WMCA, whose products are 8 to 32 channels wide; MSTR, which
    is 2 % of m2h-small's work but whose noise reaches all four outputs; and the edge head's first convolution, whose
    rounding degrades the edges most (without it, m2h-tiny's edges reach 37 dB instead of 25). The names cover both
    forms of the graph. Whatever a policy says, only Conv, MatMul and Gemm with constant weights are quantized, which
    excludes the attention core, norms and GELU.
    """

    quantize: tuple[str, ...] = ("*",)
    weights_only: bool = False
    """Store the weights of Linear layers in INT8 and compute in FP16: TensorRT-RTX supports INT8 for these."""
    keep: tuple[str, ...] = KEPT_IN_FLOAT
    smooth_quant: float | None = None
    """Alpha of SmoothQuant in linear layers, 0 to 1, for OpenVINO: moves outliers of activations into the weights."""


def load_policy(path: str | os.PathLike[str]) -> QuantPolicy:
    """Read a policy from JSON: `{"quantize": ["backbone", "wmca"], "keep": ["/heads.*/final/*"]}`, either optional.

    `"weights_only": true` and `"smooth_quant": 0.5` may be added.

    Raises:
        M2HError: The file cannot be read or is not a policy; names the file.
    """
    content = read_json(path, "the policy")
    if not isinstance(content, dict) or not all(_fits(key, value) for key, value in content.items()):
        raise M2HError(f"the policy {path}: expected {{'quantize': [...], 'keep': [...]}} with blocks or globs")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return QuantPolicy(**fields)


def _fits(key: str, value: Any) -> bool:
    if key == "weights_only":
        return isinstance(value, bool)
    if key == "smooth_quant":
        return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return key in ("quantize", "keep") and isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def candidates(proto: onnx.ModelProto) -> dict[str, str]:
    """Return every layer that could be INT8, by name, with the activation that it reads."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {
        node.name: node.input[0]
        for node in proto.graph.node
        if node.op_type in QUANTIZABLE and node.input[1] in weights and node.input[0] not in weights
    }


def chosen_layers(proto: onnx.ModelProto, policy: QuantPolicy) -> tuple[str, ...]:
    """Return the layers that `policy` makes INT8.

    Raises:
        M2HError: A pattern matches no layer, or no layer is left.
    """
    if policy != QuantPolicy():
        check_patterns(proto, [p for p in (*policy.quantize, *policy.keep) if p not in QuantPolicy().keep], "policy")
    linear = {node.name for node in proto.graph.node if node.op_type != "Conv"}
    names = [
        name
        for name in candidates(proto)
        if matches(name, policy.quantize)
        and not matches(name, policy.keep)
        and (name in linear or not policy.weights_only)
    ]
    if not names:
        raise M2HError("the policy leaves no layer to quantize: widen 'quantize' or shorten 'keep'")
    return tuple(names)


def insert_qdq(
    proto: onnx.ModelProto,
    layers: Sequence[str],
    ranges: Mapping[str, float],
    frame: NDArray[np.float32],
) -> onnx.ModelProto:
    """Insert Q/DQ around `layers`: weights int8 per channel, activations per tensor with the given ranges.

    ModelOpt places the nodes and quantizes the weights. Ranges come from `engines.precision.calibration`; ModelOpt runs
    `frame` once, for its own checks.

    Raises:
        M2HError: ModelOpt cannot quantize the graph.
    """
    from modelopt.onnx.quantization import quantize

    with scratch_folder("m2h-int8-") as folder, quiet_modelopt():
        source, target = folder / "float.onnx", folder / "int8.onnx"
        onnx.save(proto, source)
        cache = folder / "ranges.cache"
        _write_tensorrt_cache(cache, ranges)
        try:
            quantize(
                os.fspath(source),
                quantize_mode="int8",
                calibration_data_reader=_OneFrame(proto.graph.input[0].name, frame),
                calibration_method="max",
                calibration_cache_path=os.fspath(cache),
                calibration_eps=["cpu"],
                op_types_to_quantize=list(QUANTIZABLE),
                nodes_to_quantize=list(layers),
                high_precision_dtype="fp32",
                disable_mha_qdq=True,
                # One scale for all inputs of a Concat would undo the ranges measured for each of them.
                passes=[],
                # Weights are stored as int8 instead of being quantized again by every reader.
                dq_only=True,
                enable_gemv_detection_for_trt=False,
                output_path=os.fspath(target),
                log_level="CRITICAL",
            )
            return _only_layers_read_quantized(onnx.load(target), layers)
        except Exception as error:  # ModelOpt passes on the errors of its dependencies
            raise M2HError(f"NVIDIA ModelOpt cannot quantize the graph: {reason(error)}") from error


def insert_weight_dq(proto: onnx.ModelProto, layers: Sequence[str]) -> onnx.ModelProto:
    """Store the weights of the Linear `layers` as int8, per output channel, followed by DequantizeLinear."""
    result = copy_of(proto)
    weights = {tensor.name: tensor for tensor in result.graph.initializer}
    wanted, done = set(layers), set[str]()
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.name in wanted:
            name = node.input[1]
            axis = output_axis(node, 2)
            if name not in done:
                values, scales = int8_per_channel(numpy_helper.to_array(weights[name]), axis)
                result.graph.initializer.append(numpy_helper.from_array(values, f"{name}_int8"))
                result.graph.initializer.append(numpy_helper.from_array(scales.ravel(), f"{name}_scale"))
                inputs, outputs = [f"{name}_int8", f"{name}_scale"], [f"{name}_dequantized"]
                nodes.append(helper.make_node("DequantizeLinear", inputs, outputs, f"{node.name}_weight", axis=axis))
                done.add(name)
            node.input[1] = f"{name}_dequantized"
        nodes.append(node)
    replace_nodes(result, nodes)
    drop_unused_initializers(result)
    return result


def output_axis(node: onnx.NodeProto, sides: int) -> int:
    """Return the axis of a weight with `sides` axes that counts the output channels."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else sides - 1


def int8_per_channel(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a weight to INT8, symmetric per index of `axis`; return it and its scales, which broadcast to it."""
    others = tuple(index for index in range(weight.ndim) if index != axis % weight.ndim)
    scale = np.abs(weight).max(axis=others, keepdims=True) / 127
    scale[scale == 0] = 1
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)


def _only_layers_read_quantized(proto: onnx.ModelProto, layers: Sequence[str]) -> onnx.ModelProto:
    """Connect every other reader of a quantized activation to the activation itself.

    ONNX Runtime's quantizer, which ModelOpt uses, connects all readers to the Q/DQ: residual sums and resizes would be
    rounded to 8 bits too, without any gain.
    """
    wanted = set(layers)
    quantized = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    original = {
        node.output[0]: quantized[node.input[0]]
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in quantized
    }
    for node in proto.graph.node:
        if node.name not in wanted and node.op_type != "QuantizeLinear":
            node.input[:] = [original.get(name, name) for name in node.input]
    return proto


def quantized_layers(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Return the layers of a Q/DQ graph whose constant weight comes from a DequantizeLinear."""
    constant = {tensor.name for tensor in proto.graph.initializer}
    dequantized = set()
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in constant:  # of a weight that is stored as float
            constant.add(node.output[0])
        if node.op_type == "DequantizeLinear" and node.input[0] in constant:
            dequantized.add(node.output[0])
    return tuple(node.name for node in proto.graph.node if node.op_type in QUANTIZABLE and node.input[1] in dequantized)


def _write_tensorrt_cache(file: Path, ranges: Mapping[str, float]) -> None:
    """Write TensorRT's calibration cache: one line per tensor, its scale as the hex of a big-endian float."""
    # A tensor that was zero on every frame can have any scale.
    scales = {name: (largest or 1.0) / 127 for name, largest in ranges.items()}
    lines = ["TRT-10000-EntropyCalibration2", *(f"{n}: {struct.pack('!f', s).hex()}" for n, s in scales.items())]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


class _OneFrame:
    """A calibration data reader, in the terms of ModelOpt and ONNX Runtime, over one frame."""

    def __init__(self, name: str, frame: NDArray[np.float32]) -> None:
        self._feed = {name: frame}
        self._left = 1

    def get_first(self) -> dict[str, Any]:
        """Return the frame."""
        return self._feed

    def get_next(self) -> dict[str, Any] | None:
        """Return the frame on the first call after `rewind`, then None."""
        self._left -= 1
        return self._feed if self._left >= 0 else None

    def rewind(self) -> None:
        """Start again."""
        self._left = 1

    def __iter__(self) -> _OneFrame:
        return self

    def __next__(self) -> dict[str, Any]:
        feed = self.get_next()
        if feed is None:
            raise StopIteration
        return feed

    def set_range(self, start_index: int, end_index: int) -> None:
        """Do nothing: ONNX Runtime selects a range of frames with it, and there is only one."""
