"""Base class of the options of an engine kind, and the tools that lower graphs for the kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2h_deploy.backends import BackendOptions
from m2h_deploy.errors import M2HError

Tool = Literal["modelopt", "nncf", "onnxruntime"]
"""The tool that lowers a graph: NVIDIA's, OpenVINO's or ONNX Runtime's own."""


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of `build_bundle`; each engine kind has its own subclass."""

    def in_float32(self) -> EngineOptions:
        """Return the same options for a float32 engine, without those that only apply to a lower precision."""
        return self

    def to_open(self) -> BackendOptions:
        """Return the options for opening the engine that was built, for its self-test."""
        return BackendOptions()


def check_cpu_precision(precision: str | None) -> None:
    """Raise M2HError for a precision that no CPU computes in."""
    if precision == "fp8":
        raise M2HError(
            "no CPU computes in FP8: build with --precision int8 or fp16, or for a GPU with --engine tensorrt-rtx, "
            "--engine tensorrt, or --engine onnxruntime --provider tensorrt"
        )
