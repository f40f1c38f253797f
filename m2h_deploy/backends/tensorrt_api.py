"""The two flavors of TensorRT behind one door: TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their Python modules have the same classes; what one lacks is asked for with `hasattr` where it is used.
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
    """The Python module of a flavor. Raises M2HError, naming the extra, where it is not installed."""
    check_choice("TensorRT flavor", flavor, Flavor)
    if flavor not in _modules:
        try:
            _modules[flavor] = importlib.import_module(flavor.replace("-", "_"))
        except (ImportError, OSError) as error:  # OSError: a library that the package needs is missing
            raise missing_extra(NAMES[flavor], flavor, "the engine", error=error) from None
    return _modules[flavor]
