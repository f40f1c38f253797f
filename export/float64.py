"""Evaluate the network in float64 within bounded memory.

PyTorch's float64 convolution first unfolds its whole input: a 3 x 3 convolution of m2h-small at 640x480 takes 8 GB for
that alone. Here large maps are processed in strips of rows, which gives the same sums.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.network import M2H

#: Bytes of an unfolded input above which a map is cut into strips.
UNFOLDED_BYTES = 256 << 20


def to_float64(model: M2H) -> M2H:
    """Return a float64 copy of `model` that needs little more memory than its activations."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain and module.kernel_size != (1, 1):
            module.__class__ = _StripConv2d
    return model


class _StripConv2d(nn.Conv2d):
    """A convolution that unfolds at most `UNFOLDED_BYTES` of its input at a time."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, Cin, H, W) strip by strip."""
        batch, _, height, width = input.shape
        assert not isinstance(self.padding, str)  # see to_float64
        (pad_y, pad_x), (kernel_y, kernel_x) = self.padding, self.kernel_size
        reach = self.dilation[0] * (kernel_y - 1) + 1
        rows = (height + 2 * pad_y - reach) // self.stride[0] + 1
        columns = (width + 2 * pad_x - self.dilation[1] * (kernel_x - 1) - 1) // self.stride[1] + 1
        row_bytes = batch * self.in_channels * kernel_y * kernel_x * columns * input.element_size()
        step = max(1, UNFOLDED_BYTES // row_bytes)
        if step >= rows:
            return super().forward(input)
        padded = F.pad(input, (pad_x, pad_x, pad_y, pad_y))
        strips = []
        for first in range(0, rows, step):
            last = min(first + step, rows) - 1
            strip = padded[:, :, first * self.stride[0] : last * self.stride[0] + reach]
            strips.append(F.conv2d(strip, self.weight, self.bias, self.stride, 0, self.dilation, self.groups))
        return torch.cat(strips, dim=2)
