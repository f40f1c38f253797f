"""Fold consecutive linear maps into one. All identities are exact in real arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2h_deploy.model.layers import SeparableConv


def dense_matrix(conv: nn.Conv2d) -> Tensor:
    """Return the (Cout, Cin) matrix of a 1x1 convolution; a grouped one is block-diagonal.

    Engines run a dense 1x1 as one matrix product but small groups one by one, which costs more than the zeros.
    """
    blocks = conv.weight.flatten(1).chunk(conv.groups)
    return torch.block_diag(*blocks)


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the bias (Cout,), or zeros if the convolution has none."""
    return conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)


def pointwise(matrix: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """Build a 1x1 convolution from its matrix (Cout, Cin) and bias (Cout,)."""
    return convolution(matrix[:, :, None, None], bias)


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """Build a convolution with the given weight (Cout, Cin / groups, kh, kw) and bias (Cout,)."""
    out_channels, in_channels, rows, columns = weight.shape
    conv = nn.Conv2d(
        in_channels * groups,
        out_channels,
        (rows, columns),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
        dtype=weight.dtype,
    )
    conv.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach().clone().contiguous(), requires_grad=False)
    return conv


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Build a linear layer with the given weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone().contiguous(), requires_grad=False)
    return layer


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C,) of a batch norm in eval mode: norm(x) = scale * x + shift."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


def fold_batch_norm(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """Fold a batch norm into the convolution before it.

    norm(conv(x)) = diag(s) (W x + b) + t = (diag(s) W) x + (s b + t). Exact in eval mode. In a separable convolution,
    the norm is folded into the pointwise part.
    """
    scale, shift = batch_norm_affine(norm)
    if isinstance(conv, SeparableConv):
        return nn.Sequential(copy_of(conv.depthwise), fold_batch_norm(conv.pointwise, norm))
    assert isinstance(conv, nn.Conv2d)
    return _like(conv, conv.weight * scale[:, None, None, None], bias_of(conv) * scale + shift)


def copy_of(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the same convolution with its own copy of the weights."""
    return _like(conv, conv.weight, conv.bias)


def plain_conv(conv: nn.Module) -> nn.Module:
    """Convert a convolution of the reference, separable or not, to plain convolutions."""
    if isinstance(conv, SeparableConv):
        return nn.Sequential(copy_of(conv.depthwise), copy_of(conv.pointwise))
    assert isinstance(conv, nn.Conv2d)
    return copy_of(conv)


def fold_pointwise_pair(first: nn.Conv2d, second: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return matrix and bias of two consecutive 1x1 convolutions: B (A x + a) + b = (B A) x + (B a + b)."""
    matrix = dense_matrix(second)
    return matrix @ dense_matrix(first), matrix @ bias_of(first) + bias_of(second)


def fold_separable_1x1(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Return matrix (Cout, Cin) and bias (Cout,) of a 1x1 convolution.

    A separable 1x1 is a scale per channel followed by a matrix; the two are folded.
    """
    if not isinstance(conv, SeparableConv):
        assert isinstance(conv, nn.Conv2d)
        return dense_matrix(conv), bias_of(conv)
    return fold_pointwise_pair(conv.depthwise, conv.pointwise)


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    stride, padding, dilation = conv.stride[0], conv.padding[0], conv.dilation[0]
    assert isinstance(padding, int)
    return convolution(weight, bias, stride=stride, padding=padding, dilation=dilation, groups=conv.groups)
