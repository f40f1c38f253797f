"""Bilinear resizes as linear maps, and the small layers that several blocks of the deploy form share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import convolution, pointwise


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Bilinear upsampling by a whole factor, corners aligned: the U of the identities below.

    The same numbers as the reference's resize to a size; as a factor, the exported Resize does not hold the batch.
    """
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


def resize_matrix(length: int, target: int, *, align_corners: bool = False) -> Tensor:
    """A bilinear resize of one axis as a matrix (target, length), float64. Its rows sum to 1.

    A resize of a map is then Ry x Rx^T, and resizes in a row are the product of their matrices.
    """
    basis = torch.eye(length, dtype=torch.float64)[None]
    return F.interpolate(basis, size=target, mode="linear", align_corners=align_corners)[0].T.contiguous()


def upsample_matrix(length: int, factor: int = 2) -> Tensor:
    """U of one axis as a matrix (factor * length, length), float64."""
    return resize_matrix(length, factor * length, align_corners=True)


def upsampled_mean_weights(height: int, width: int) -> Tensor:
    """Weights (height, width) with mean(U x) = sum(weights * x).

    The mean of a linear map's output is its columns' means times the input. Corners aligned, these are not uniform.
    """
    return torch.outer(upsample_matrix(height).mean(0), upsample_matrix(width).mean(0))


class UpsampledMean(nn.Module):
    """mean(U x) per channel from x alone, as two depthwise convolutions: (N, C, H, W) to (N, C, 1, 1).

    Depthwise, so that the map stays in the channel-blocked layout of the convolutions around it.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        rows, columns = upsample_matrix(height).mean(0), upsample_matrix(width).mean(0)
        self.rows = convolution(rows.reshape(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
        self.columns = convolution(columns.reshape(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.columns(self.rows(x))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of (B, L, C) each to (B, L, C); the queries carry the scale."""
    length, width = query.shape[1:]
    shape = (-1, length, heads, width // heads)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))
    weights = torch.softmax(q @ k.transpose(2, 3), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(-1, length, width)


class Gate(nn.Module):
    """sigmoid(E relu(S m + s) + e) from pooled features m: (N, Cin, 1, 1) to (N, C, 1, 1)."""

    def __init__(self, squeeze: tuple[Tensor, Tensor | None], excite: tuple[Tensor, Tensor | None]) -> None:
        super().__init__()
        self.squeeze = pointwise(*squeeze)
        self.excite = pointwise(*excite)

    def forward(self, pooled: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


def global_mean(x: Tensor) -> Tensor:
    """Global average pooling as two poolings, columns then rows: (N, C, H, W) to (N, C, 1, 1).

    Pooling operators stay in the convolutions' channel-blocked layout; the mean over two axes leaves it. In two
    steps, because engines add a window up one by one: a single float32 sum over the map costs three digits.
    """
    return F.avg_pool2d(F.avg_pool2d(x, (x.shape[2], 1)), (1, x.shape[3]))


def spread(x: Tensor, size: tuple[int, int]) -> Tensor:
    """One value a channel repeated over a map: (N, C, 1, 1) to (N, C, H, W).

    Engines that block channels multiply and add maps of one shape in that layout, and leave it to broadcast.
    """
    return F.interpolate(x, scale_factor=(float(size[0]), float(size[1])), mode="nearest")


def taps(conv: nn.Conv2d) -> tuple[Tensor, nn.Conv2d]:
    """A 3x3 convolution to one channel in two steps: the matrix (9, Cin) of a 1x1, and the convolution that ends it.

    Output(p) = sum over the nine offsets d of w_d . x(p + d): first all w_d . x(p) as nine channels, then a fixed
    one-hot 3x3 that shifts and adds them. Zero padding stays zero because the 1x1 has no bias. Exact. The wide map
    is read once, densely, instead of once an offset for one useful channel.
    """
    assert conv.out_channels == 1 and conv.kernel_size == (3, 3)
    matrix = conv.weight[0].flatten(1).T  # (9, Cin)
    selector = torch.eye(9, dtype=conv.weight.dtype).reshape(1, 9, 3, 3)
    return matrix, convolution(selector, conv.bias, padding=1)
