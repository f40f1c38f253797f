"""Common access to both flavors of TensorRT: TensorRT 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`).

Their Python modules have the same classes; members that one of them lacks are checked with `hasattr` before use.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
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


def start(kind: Callable[[Any], Any], name: str, logger: Any, messages: Messages) -> Any:
    """Return `kind(logger)`, TensorRT's Runtime or Builder. Raises EngineError as `check_started` does."""
    try:
        made = kind(logger)
    except TypeError:  # a null pointer, in older versions
        made = None
    check_started(name, messages, made)
    return made


def check_started(name: str, messages: Messages, made: Any) -> None:
    """Raise EngineError, in TensorRT's own words, if it did not start.

    Where CUDA fails, TensorRT's Runtime and Builder log an error and still return an object. Using it ends the process,
    and so does freeing it: it is never freed.

    Args:
        name: TensorRT's name and version.
        messages: What it logged while it made the object.
        made: The object; None if TensorRT returned a null pointer.
    """
    if not messages.errors and made is not None:
        return
    if made is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    raise EngineError(f"{name} does not start: {messages.errors[0] if messages.errors else 'it gives no reason'}")
