"""Common access to both flavors of TensorRT: TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their Python modules have the same classes; members that one of them lacks are checked with `hasattr` before use.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

from m2h_deploy.choices import check_choice
from m2h_deploy.errors import missing_extra

Flavor = Literal["tensorrt", "tensorrt-rtx"]

NAMES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

_modules: dict[str, Any] = {}


def load_tensorrt(flavor: str) -> Any:
    """Import the module of a flavor. Raises M2HError, naming the extra, if it is not installed."""
    check_choice("TensorRT flavor", flavor, Flavor)
    if flavor not in _modules:
        try:
            _modules[flavor] = importlib.import_module(flavor.replace("-", "_"))
        except (ImportError, OSError) as error:  # OSError: a library that the package needs is missing
            raise missing_extra(NAMES[flavor], flavor, "the engine", error=error) from None
    return _modules[flavor]
