"""Speed-ups of training on a CPU. They do not change results beyond rounding."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_sdpa = F.scaled_dot_product_attention

#: Channels per head below which matrix units are not used efficiently with any data type.
_NARROW = 16


def keep_freed_memory() -> None:
    """Configure glibc to keep freed memory instead of returning it to the system.

    A training step frees and allocates the same hundreds of large maps. Getting each anew from the kernel, zeroed page
    by page, took three quarters of the step. With other C libraries this function does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


class CPUAttention(TorchFunctionMode):
    """Context in which attention on a CPU uses the faster of two equivalent implementations.

    PyTorch's fused CPU kernel has a slow backward pass in bfloat16. Wide heads are computed with plain matrix products,
    which use the CPU's bfloat16 units; narrow ones use the fused kernel in float32.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _sdpa and len(args) == 3 and not kwargs and args[0].device.type == "cpu":
            return _attention(*args)
        return func(*args, **(kwargs or {}))


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    width = q.shape[-1]
    if width >= _NARROW:
        return torch.softmax((q * width**-0.5) @ k.transpose(-1, -2), dim=-1) @ v
    with torch.autocast("cpu", enabled=False):
        return _sdpa(q.float(), k.float(), v.float()).to(q.dtype)
