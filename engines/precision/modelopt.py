"""Import NVIDIA ModelOpt on demand and keep its log out of the command's own output."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator

from m2h_deploy.errors import missing_extra


def require_modelopt() -> None:
    """Raise M2HError, naming the extra, if ModelOpt's ONNX part is not installed."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            importlib.import_module("modelopt.onnx.quantization")
    except ImportError as error:
        raise missing_extra(error.name or "modelopt", "precision", "FP16 and INT8 lowering", error=error) from None


@contextlib.contextmanager
def quiet_modelopt() -> Iterator[None]:
    """Silence ModelOpt's log, which goes to stdout, inside the block."""
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
