"""Bilinear resizes as linear maps, and small layers shared by several blocks of the deploy form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import convolution, pointwise


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Upsample bilinearly by an integer factor, corners aligned: the U of the identities below.

    The result equals the reference's resize to a size, but with a factor the exported Resize does not depend on the
    batch size.
    """
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


def resize_matrix(length: int, target: int, *, align_corners: bool = False) -> Tensor:
    """Return a bilinear resize along one axis as a float64 matrix (target, length) whose rows sum to 1.

    The resize of a map is then Ry x Rx^T, and consecutive resizes are the product of their matrices.
    """
    basis = torch.eye(length, dtype=torch.float64)[None]
    return F.interpolate(basis, size=target, mode="linear", align_corners=align_corners)[0].T.contiguous()


def upsample_matrix(length: int, factor: int = 2) -> Tensor:
    """Return U along one axis as a float64 matrix (factor * length, length)."""
    return resize_matrix(length, factor * length, align_corners=True)


def upsampled_mean_weights(height: int, width: int) -> Tensor:
    """Return weights (height, width) with mean(U x) = sum(weights * x).

    The mean of a linear map's output is the means of its columns times the input. With corners aligned, these are not
    uniform.
    """
    return torch.outer(upsample_matrix(height).mean(0), upsample_matrix(width).mean(0))


class UpsampledMean(nn.Module):
    """mean(U x) per channel, computed from x as two depthwise convolutions: (N, C, H, W) to (N, C, 1, 1).

    Depthwise, so that the map stays in the channel-blocked layout of the convolutions around it.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        rows, columns = upsample_matrix(height).mean(0), upsample_matrix(width).mean(0)
        self.rows = convolution(rows.reshape(1, 1, -1, 1).repeat(channels, 1, 1, 1), groups=channels)
        self.columns = convolution(columns.reshape(1, 1, 1, -1).repeat(channels, 1, 1, 1), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1)."""
        return self.columns(self.rows(x))


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention, three tensors (B, L, C) to (B, L, C); the queries are already scaled."""
    length, width = query.shape[1:]
    shape = (-1, length, heads, width // heads)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))
    weights = torch.softmax(q @ k.transpose(2, 3), dim=-1)
    return (weights @ v).transpose(1, 2).reshape(-1, length, width)


class Gate(nn.Module):
    """sigmoid(E relu(S m + s) + e) of pooled features m: (N, Cin, 1, 1) to (N, C, 1, 1)."""

    def __init__(self, squeeze: tuple[Tensor, Tensor | None], excite: tuple[Tensor, Tensor | None]) -> None:
        super().__init__()
        self.squeeze = pointwise(*squeeze)
        self.excite = pointwise(*excite)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map pooled features (N, Cin, 1, 1) to gates (N, C, 1, 1) in 0..1."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


def global_mean(x: Tensor) -> Tensor:
    """Pool globally by averaging columns, then rows: (N, C, H, W) to (N, C, 1, 1).

    Pooling operators stay in the convolutions' channel-blocked layout; a mean over two axes leaves it. Two steps are
    more accurate: engines accumulate a window sequentially, and a single float32 sum over the map loses three digits.
    """
    return F.avg_pool2d(F.avg_pool2d(x, (x.shape[2], 1)), (1, x.shape[3]))


def spread(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Repeat one value per channel over a map: (N, C, 1, 1) to (N, C, H, W).

    Engines with a channel-blocked layout keep it when they multiply or add maps of one shape, and leave it to
    broadcast.
    """
    return F.interpolate(x, scale_factor=(float(size[0]), float(size[1])), mode="nearest")


def taps(conv: nn.Conv2d) -> tuple[Tensor, nn.Conv2d]:
    """Split a 3x3 convolution to one channel into the matrix (9, Cin) of a 1x1 and a final convolution.

    Output(p) = sum over the nine offsets d of w_d . x(p + d): first all w_d . x(p) as nine channels, then a fixed
    one-hot 3x3 that shifts and adds them. Zero padding stays zero because the 1x1 has no bias. Exact. The wide map is
    read once as a dense product, instead of once per offset for a single output channel.
    """
    assert conv.out_channels == 1 and conv.kernel_size == (3, 3)
    matrix = conv.weight[0].flatten(1).T  # (9, Cin)
    selector = torch.eye(9, dtype=conv.weight.dtype).reshape(1, 9, 3, 3)
    return matrix, convolution(selector, conv.bias, padding=1)
