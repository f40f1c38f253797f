"""WMCA with the four tasks stacked in one map: one partition and one attention for all of them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import bias_of, dense_matrix, linear, pointwise
from export.deploy_form.layers import attention, upsample
from m2h_deploy.model.config import WMCA_TASKS
from m2h_deploy.model.wmca import WMCA, CrossTaskAttention, WMCALayer


def window_grid(height: int, width: int, window_size: int) -> tuple[int, int]:
    """Return how many rows and columns of windows cover a map."""
    return -(-height // window_size), -(-width // window_size)


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Partition (N, C, H, W) into windows (N * M, p * p, C) as the reference does, but channels last first.

    A single permutation of six axes copies one channel value at a time; this way rows of p * C adjacent values are
    copied.
    """
    x = x.permute(0, 2, 3, 1)
    _, height, width, channels = x.shape
    rows, columns = window_grid(height, width, window_size)
    x = F.pad(x, (0, 0, 0, columns * window_size - width, 0, rows * window_size - height))
    x = x.reshape(-1, rows, window_size, columns, window_size, channels)
    return x.transpose(2, 3).reshape(-1, window_size * window_size, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Invert `window_partition`: (N * M, p * p, C) to (N, C, H, W), padding cropped."""
    rows, columns = window_grid(height, width, window_size)
    x = windows.reshape(-1, rows, columns, window_size, window_size, windows.shape[2])
    x = x.transpose(2, 3).reshape(-1, rows * window_size, columns * window_size, windows.shape[2])
    return x[:, :height, :width].permute(0, 3, 1, 2)


def padding_mask(height: int, width: int, window_size: int) -> Tensor:
    """Return 1 for real positions and 0 for padding, (M, p * p, 1) in the order of `window_partition`."""
    return window_partition(torch.ones(1, 1, height, width, dtype=torch.float64), window_size)


class TaskNorms(nn.Module):
    """One LayerNorm per task on stacked windows: (B, L, T * C) to the same shape."""

    def __init__(self, norms: nn.ModuleDict) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norms[task] for task in WMCA_TASKS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each task's channels of (B, L, T * C)."""
        parts = x.chunk(len(self.norms), dim=2)
        return torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=2)


class WindowAttention(nn.Module):
    """`CrossTaskAttention` with fewer biases and no scale: (B, L, C) to (B, L, C). Exact.

    q . (k + b) = q . k + q . b, and q . b is the same for every key, which softmax ignores, so the key bias is dropped.
    The weights of a query sum to 1, so the value bias bv is added to the output's bias as Wo bv. The scale is folded
    into Wq. Three products instead of one: at this many tokens, splitting a joint result costs more than reading x
    again.
    """

    def __init__(self, source: CrossTaskAttention) -> None:
        super().__init__()
        channels = source.out.in_features
        self.heads = source.heads
        scale = 1.0 / math.sqrt(channels // source.heads)
        query, key, value = source.qkv.weight.chunk(3)
        query_bias, _, value_bias = source.qkv.bias.chunk(3)
        self.query = linear(query * scale, query_bias * scale)
        self.key, self.value = linear(key), linear(value)
        out = source.out
        self.out = linear(out.weight, out.bias + out.weight @ value_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window: tokens (B, L, C) to (B, L, C)."""
        return self.out(attention(self.query(x), self.key(x), self.value(x), self.heads))


class DeployWMCALayer(nn.Module):
    """`WMCALayer` on windows of stacked tasks, (B, p * p, T * C) to the same shape. Padding tokens are zeros on input.

    The feed-forward's linear layers are 1x1 convolutions over a window's (position, task) grid: the products are the
    same, and engines add a convolution's bias and the residual without another pass over the wide map.
    """

    def __init__(self, layer: WMCALayer) -> None:
        super().__init__()
        self.norm1, self.norm2 = TaskNorms(layer.norm1), TaskNorms(layer.norm2)
        self.attention = WindowAttention(layer.attention)
        self.ffn1 = pointwise(layer.ffn1.weight, layer.ffn1.bias)
        self.ffn2 = pointwise(layer.ffn2.weight, layer.ffn2.bias)

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows (B, p * p, T * C) to the same shape."""
        positions, features = windows.shape[1:]
        tasks = len(WMCA_TASKS)
        z = self.norm1(windows).reshape(-1, positions * tasks, features // tasks)
        z = z + self.attention(z)
        z = z.reshape(-1, positions, tasks, features // tasks).permute(0, 3, 1, 2)
        z = z + self.ffn2(F.gelu(self.ffn1(z)))
        return self.norm2(z.permute(0, 2, 3, 1).reshape(-1, positions, features))


class DeployWMCA(nn.Module):
    """`WMCA` on windows, with one partition for all tasks and layers.

    Attention is invariant to the order of its tokens, so a window holds (row, column, task) tokens. The reference crops
    after each layer and pads with zeros again before the next; here padding tokens are reset to zero between layers.
    Exact.
    """

    def __init__(self, wmca: WMCA) -> None:
        super().__init__()
        self.reduce = wmca.reduce if wmca.reduced else None
        layers: Any = wmca.layers
        self.layers = nn.ModuleList(DeployWMCALayer(layer) for layer in layers)
        self.window_size: int = layers[0].window_size
        # Looked up on the instance so that an export can replace them by named operators.
        self.partition = window_partition
        self.reverse = window_reverse

    def forward(self, maps: dict[str, Tensor]) -> Tensor:
        """Exchange features between the tasks.

        Args:
            maps: One map (N, C, H, W) per task.

        Returns:
            One map (N, T * C', H', W'), tasks in the order of WMCA_TASKS. In M2H-small this is the map before
            upsampling and `expand`, which the following layers fold in: C' = C / 4, H' = H / 2, W' = W / 2.
        """
        if self.reduce is not None:
            maps = {task: F.max_pool2d(self.reduce[task](maps[task]), 2) for task in WMCA_TASKS}
        stacked = torch.cat([maps[task] for task in WMCA_TASKS], dim=1)
        height, width = stacked.shape[2:]
        windows = self.partition(stacked, self.window_size)
        for index, layer in enumerate(self.layers):
            windows = layer(windows if index == 0 else self.clear_padding(windows, height, width))
        return self.reverse(windows, self.window_size, height, width)

    def clear_padding(self, windows: Tensor, height: int, width: int) -> Tensor:
        """Set the padding tokens of windows (N * M, p * p, C) to zero, as the reference has them before a layer."""
        mask = padding_mask(height, width, self.window_size).to(windows)
        masked = windows.reshape(-1, *mask.shape[:2], windows.shape[2]) * mask
        return masked.reshape(-1, mask.shape[1], windows.shape[2])


def embed_task(matrix: Tensor, task: str) -> Tensor:
    """Extend a task's matrix (Cout, C) with zeros to all stacked tasks, (Cout, T * C).

    One product over the stacked map replaces a slice of it, which would leave the convolutions' layout.
    """
    blocks = [matrix if other == task else torch.zeros_like(matrix) for other in WMCA_TASKS]
    return torch.cat(blocks, dim=1)


class LocalPath(nn.Module):
    """F^t to F_local^t for any `cross_task`: the deploy form of WMCA, the reference's ablation, or the identity.

    `forward` returns one map per task; `full` converts it to C channels at full size if it is not there yet.
    """

    def __init__(self, wmca: WMCA | None) -> None:
        super().__init__()
        windows = wmca is not None and isinstance(wmca.layers[0], WMCALayer)
        self.exchange = DeployWMCA(wmca) if wmca is not None and windows else wmca
        self.reduced = wmca is not None and windows and wmca.reduced
        self.expand = nn.ModuleDict()
        if wmca is not None and self.reduced:
            for task in WMCA_TASKS:
                conv: Any = wmca.expand[task]
                self.expand[task] = pointwise(embed_task(dense_matrix(conv), task), bias_of(conv))

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Map F^t per task, (N, C, H, W), to the local map of each task.

        In M2H-small every task gets the same stacked map (N, T * C', H / 2, W / 2); otherwise each gets (N, C, H, W).
        """
        if self.exchange is None:
            return maps
        if not isinstance(self.exchange, DeployWMCA):
            return self.exchange(maps)
        stacked = self.exchange(maps)
        if self.reduced:
            return dict.fromkeys(WMCA_TASKS, stacked)
        return dict(zip(WMCA_TASKS, stacked.chunk(len(WMCA_TASKS), dim=1), strict=True))

    def full(self, task: str, local: Tensor) -> Tensor:
        """Return a task's local map at full size, (N, C, H, W): expand(U x) = U expand(x), bias included. Exact."""
        return upsample(self.expand[task](local)) if self.reduced else local
