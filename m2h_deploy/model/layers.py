"""Small layers that several blocks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv(nn.Module):
    """Depthwise convolution, then a 1x1 (pointwise) convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels,
            in_channels,
            kernel_size,
            padding=padding,
            dilation=dilation,
            groups=in_channels,
            bias=bias,
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve: (N, Cin, H, W) to (N, Cout, H', W'), H' and W' as for a dense convolution with the same kernel."""
        return self.pointwise(self.depthwise(x))


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    separable: bool,
    dilation: int = 1,
    bias: bool = True,
) -> nn.Module:
    """Make a convolution that keeps height and width.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd, pixels.
        separable: depthwise separable (M2H-small) instead of dense (M2H).
        dilation: spacing of the kernel's taps, pixels.
        bias: whether the convolutions have a bias.
    """
    padding = dilation * (kernel_size // 2)
    if separable:
        return SeparableConv(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)


def upsample2(x: Tensor) -> Tensor:
    """Upsample bilinearly by two, corners aligned: (N, C, H, W) to (N, C, 2H, 2W)."""
    size = (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Resize (N, C, h, w) bilinearly to `size` (H, W). A tensor that has this size is returned as it is."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def global_mean(x: Tensor) -> Tensor:
    """Average each channel over height and width (GAP): (N, C, H, W) to (N, C, 1, 1).

    Each row is averaged first: ONNX Runtime sums the values of a mean one after the other, which loses three digits
    over a million values.
    """
    return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
