"""Collect TensorRT's messages instead of printing them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from m2h_deploy.backends.tensorrt_api import load_tensorrt


@dataclass
class Messages:
    """TensorRT's messages; the oldest are dropped. A caller clears them before the call whose reason it wants."""

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=50))
    attention: set[str] = field(default_factory=set)
    """Nodes that the builder recognized as attention and maps to a fused kernel."""


_loggers: dict[str, Any] = {}


def listen(flavor: str) -> tuple[Any, Messages]:
    """Return the flavor's logger and its messages, which are cleared.

    TensorRT accepts one logger per process and ignores any later one, so all callers share the logger and its messages.
    """
    trt = load_tensorrt(flavor)
    if flavor not in _loggers:
        _loggers[flavor] = _make_logger(trt)
    logger = _loggers[flavor]
    logger.messages.errors.clear()
    logger.messages.attention.clear()
    return logger, logger.messages


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages = Messages()

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity <= trt.ILogger.ERROR:
                self.messages.errors.append(text)
            elif text.startswith("Found ") and text.endswith("part of self-attention pattern."):
                self.messages.attention.add(text.split()[1])

    return Logger()
