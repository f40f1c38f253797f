"""Folding: linear maps that follow each other become one. All exact in real arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m2h_deploy.model.layers import SeparableConv


def dense_matrix(conv: nn.Conv2d) -> Tensor:
    """The (Cout, Cin) matrix of a 1x1 convolution; a grouped one is block-diagonal.

    Engines run a dense 1x1 as one matrix product, and small groups one by one: the zeros cost less.
    """
    blocks = conv.weight.flatten(1).chunk(conv.groups)
    return torch.block_diag(*blocks)


def bias_of(conv: nn.Conv2d) -> Tensor:
    """The bias (Cout,), zeros where the convolution has none."""
    return conv.bias if conv.bias is not None else conv.weight.new_zeros(conv.out_channels)


def pointwise(matrix: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution from its matrix (Cout, Cin) and bias (Cout,)."""
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
    """A convolution with the given weight (Cout, Cin / groups, kh, kw) and bias (Cout,)."""
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
    """A linear layer with the given weight (out, in) and bias (out,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone().contiguous(), requires_grad=False)
    return layer


def batch_norm_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in eval mode: norm(x) = scale * x + shift."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


def fold_batch_norm(conv: nn.Module, norm: nn.BatchNorm2d) -> nn.Module:
    """norm(conv(x)) as one convolution: diag(s) (W x + b) + t = (diag(s) W) x + (s b + t). Exact in eval mode.

    A separable convolution takes it into its pointwise part.
    """
    scale, shift = batch_norm_affine(norm)
    if isinstance(conv, SeparableConv):
        return nn.Sequential(copy_of(conv.depthwise), fold_batch_norm(conv.pointwise, norm))
    assert isinstance(conv, nn.Conv2d)
    return _like(conv, conv.weight * scale[:, None, None, None], bias_of(conv) * scale + shift)


def copy_of(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with weights of its own."""
    return _like(conv, conv.weight, conv.bias)


def plain_conv(conv: nn.Module) -> nn.Module:
    """A convolution of the reference, separable or not, as plain convolutions."""
    if isinstance(conv, SeparableConv):
        return nn.Sequential(copy_of(conv.depthwise), copy_of(conv.pointwise))
    assert isinstance(conv, nn.Conv2d)
    return copy_of(conv)


def fold_pointwise_pair(first: nn.Conv2d, second: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Matrix and bias of two 1x1 convolutions in a row: B (A x + a) + b = (B A) x + (B a + b)."""
    matrix = dense_matrix(second)
    return matrix @ dense_matrix(first), matrix @ bias_of(first) + bias_of(second)


def fold_separable_1x1(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Matrix and bias of a 1x1 convolution; a separable 1x1 is a scale per channel, then a matrix: folded."""
    if not isinstance(conv, SeparableConv):
        assert isinstance(conv, nn.Conv2d)
        return dense_matrix(conv), bias_of(conv)
    return fold_pointwise_pair(conv.depthwise, conv.pointwise)


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    stride, padding, dilation = conv.stride[0], conv.padding[0], conv.dilation[0]
    assert isinstance(padding, int)
    return convolution(weight, bias, stride=stride, padding=padding, dilation=dilation, groups=conv.groups)
