"""Base class of the options of an engine kind."""

from __future__ import annotations

from dataclasses import dataclass

from m2h_deploy.backends import BackendOptions
from m2h_deploy.errors import M2HError


@dataclass(frozen=True)
class EngineOptions:
    """The `options` of `build_bundle`; each engine kind has its own subclass."""

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
