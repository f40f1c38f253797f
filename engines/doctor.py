"""What this machine has, engine kind by engine kind, and what to install for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from m2h_deploy import __version__
from m2h_deploy.backends import EXTRAS

#: Engine kind to the distributions that carry it (the first found counts) and the module they install.
_DISTRIBUTIONS = {
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "onnxruntime"),
    "openvino": (("openvino",), "openvino"),
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt"),
    "tensorrt-rtx": (("tensorrt-rtx-cu13", "tensorrt-rtx-cu12"), "tensorrt_rtx"),
}


@dataclass(frozen=True)
class EngineStatus:
    """One engine kind on this machine."""

    kind: str
    version: str | None
    """None: not installed, or it does not load."""
    details: str
    """Providers or devices where the kind is found, what to do where it is not."""


def examine() -> dict[str, Any]:
    """Python, machine, and every engine kind, as plain values."""
    return {
        "m2h_deploy": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "torch": _version("torch"),
        "engines": [asdict(_engine(kind)) for kind in _DISTRIBUTIONS],
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engine(kind: str) -> EngineStatus:
    distributions, module_name = _DISTRIBUTIONS[kind]
    version = next((found for name in distributions if (found := _version(name))), None)
    if version is None:
        return EngineStatus(kind, None, f"not installed: pip install 'm2h-deploy[{EXTRAS[kind]}]'")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a broken native library raises whatever it likes
        return EngineStatus(kind, None, f"{version} is installed but does not load: {str(error).splitlines()[0]}")
    return EngineStatus(kind, version, _details(kind, module))


def _details(kind: str, module: Any) -> str:
    if kind == "onnxruntime":
        return ", ".join(provider.removesuffix("ExecutionProvider") for provider in module.get_available_providers())
    if kind == "openvino":
        return ", ".join(module.Core().available_devices)
    return "found"
