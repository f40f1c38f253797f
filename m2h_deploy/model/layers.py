"""Small layers that several blocks share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SeparableConv(nn.Module):
    """Depthwise convolution, then a 1x1 (pointwise) convolution. (N, Cin, H, W) to (N, Cout, H', W')."""

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
    """A convolution that keeps height and width: dense (M2H) or depthwise separable (M2H-small)."""
    padding = dilation * (kernel_size // 2)
    if separable:
        return SeparableConv(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias)


def upsample2(x: Tensor) -> Tensor:
    """Bilinear 2x, corners aligned: (N, C, H, W) to (N, C, 2H, 2W)."""
    size = (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def resize(x: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """Bilinear resize to (H, W), nothing where the size already fits."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def global_mean(x: Tensor) -> Tensor:
    """Average each channel (GAP): (N, C, H, W) to (N, C, 1, 1).

    Rows first: ONNX Runtime adds the values of a mean one after the other, and loses three digits over a million.
    """
    return x.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
