"""The choices of the API and of the command line, as types: one place names the values of each."""

from __future__ import annotations

from typing import Any, Literal, get_args

from m2h_deploy.errors import M2HError

Engine = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"]
"""The engine kinds, see `m2h_deploy.backends.KINDS`."""

Precision = Literal["fp32", "fp16", "int8", "fp8"]
"""Precision of a graph and its engine."""

ComputePrecision = Literal["f32", "bf16", "f16"]
"""Type in which OpenVINO computes floating-point parts."""

Provider = Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]
"""Execution provider of ONNX Runtime."""

Calibrator = Literal["max", "entropy", "percentile"]
"""Method that chooses INT8 ranges."""

FloatType = Literal["fp32", "fp16"]
"""Type of a lowered graph's inputs and outputs."""

Form = Literal["reference", "deploy"]
"""Form of an exported graph: as published, or rewritten to run faster."""

Windows = Literal["standard", "functions"]
"""The partition of window attention as plain operators or as ONNX functions."""

SensorFormat = Literal["uint8", "nv12"]
"""Pixels that a raw-pixel graph takes."""

DepthFormat = Literal["float32", "uint16"]
"""Depth output of a raw-pixel graph: meters or millimeters."""

LabelResolution = Literal["network", "full"]
"""Labels by argmax of the logits at the network's size, then resized; or of logits resized to the image first."""

LabelsOption = Literal["network-resolution", "full-resolution"]
"""The same as an option of the command line."""

Preset = Literal["published", "imagenet"]
"""Normalization: as M2H's own node does it, or as DINOv2 was trained."""

QueuePolicy = Literal["latest", "queue"]
"""Policy for frames that arrive while the engine is busy: the newest replaces the rest, or all wait."""

Scenario = Literal["single-stream", "multi-stream", "offline", "server"]
"""Scenario of MLPerf LoadGen."""

TorchDevice = Literal["auto", "cpu", "cuda"]
"""Device on which PyTorch trains and evaluates."""


SelfTestChoice = bool | Literal["auto"]
"""When a bundle's self-test runs: True always, False never, "auto" if it has not passed on this machine before."""


def check_choice(what: str, value: object, choices: Any) -> None:
    """Raise M2HError if `value` is not one of `choices`, a type of this module or a collection of names."""
    names = get_args(choices) or tuple(choices)
    if value not in names:
        raise M2HError(f"{what} '{value}': choose one of {', '.join(names)}")
