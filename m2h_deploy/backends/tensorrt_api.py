"""Common access to both flavors of TensorRT: TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their Python modules have the same classes; members that one of them lacks are checked with `hasattr` before use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from m2h_deploy.backends.driver import extra_here, missing_gpu
from m2h_deploy.choices import check_choice
from m2h_deploy.errors import EngineError, MissingExtra, missing_extra

if TYPE_CHECKING:
    from m2h_deploy.backends.tensorrt_log import Messages

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
            raise _not_installed(flavor, error) from None
    return _modules[flavor]


def _not_installed(flavor: str, error: Exception) -> MissingExtra:
    """Return the error for a flavor that cannot be imported; it also says if its plans could not run here anyway."""
    missing = missing_extra(NAMES[flavor], extra_here(flavor), "the engine", error=error)
    gpu = missing_gpu(bindings=False)
    return missing if gpu is None else MissingExtra(f"{missing}; its plans need an NVIDIA GPU, and here {gpu}")


def check_started(name: str, messages: Messages, made: Any = True) -> None:
    """Raise EngineError, in TensorRT's own words, if it did not start.

    Where CUDA fails, TensorRT's Runtime and Builder log an error and still return an object, whose use then ends the
    process. Older versions return a null pointer, which raises TypeError in Python.

    Args:
        name: TensorRT's name and version.
        messages: What it logged while it made the object.
        made: The object; None if there is none.
    """
    if messages.errors or made is None:
        raise EngineError(f"{name} does not start: {messages.errors[0] if messages.errors else 'it gives no reason'}")
