"""NVIDIA ModelOpt, imported when it is needed and kept from talking over the command's own output."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator

from m2h_deploy.errors import M2HError


def require_modelopt() -> None:
    """Raises M2HError, naming the extra, where ModelOpt's ONNX part is not installed."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module("modelopt.onnx.quantization")
    except ImportError as error:
        raise M2HError(
            f"FP16 and INT8 need NVIDIA ModelOpt, and {error.name or error} is not installed: "
            "pip install 'm2h-deploy[precision]'"
        ) from None


@contextlib.contextmanager
def quiet_modelopt() -> Iterator[None]:
    """Silence ModelOpt's log, which goes to stdout, for the length of the block."""
    logger = logging.getLogger("modelopt.onnx")
    logger.setLevel(logging.CRITICAL)
    root_level = logging.getLogger().level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            logging.getLogger().setLevel(logging.CRITICAL)
            yield
        finally:
            logging.getLogger().setLevel(root_level)
