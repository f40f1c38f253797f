"""Base class of the options of an engine kind, and the tools that lower graphs for the kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2h_deploy.backends import BackendOptions

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
