"""The two flavours of TensorRT behind one door: TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their Python modules have the same classes; what one lacks is asked for with `hasattr` where it is used.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from m2h_deploy.errors import M2HError, missing_extra

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

_modules: dict[str, Any] = {}


def load_tensorrt(flavour: str) -> Any:
    """The Python module of a flavour. Raises M2HError, naming the extra, where it is not installed."""
    if flavour not in FLAVOURS:
        raise M2HError(f"unknown TensorRT flavour '{flavour}': choose one of {', '.join(FLAVOURS)}")
    if flavour not in _modules:
        try:
            _modules[flavour] = importlib.import_module(flavour.replace("-", "_"))
        except (ImportError, OSError) as error:  # OSError: a library that the package needs is missing
            raise missing_extra(NAMES[flavour], flavour, "the engine", error=error) from None
    return _modules[flavour]
