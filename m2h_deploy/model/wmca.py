"""Windowed multi-task cross-attention (WMCA): tasks exchange local detail (paper, equations 6 to 10)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.attention import self_attention
from m2h_deploy.model.config import WMCA_TASKS, ModelConfig
from m2h_deploy.model.layers import upsample2


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Split a map into non-overlapping p x p windows (equation 6).

    H and W are padded at the bottom and right with zeros to multiples of p; M = ceil(H/p) * ceil(W/p).

    Args:
        x: (N, C, H, W).
        window_size: side p of a window, in positions of the map.

    Returns:
        (N * M, p * p, C), windows in row order.
    """
    n, channels, height, width = x.shape
    rows, columns = -(-height // window_size), -(-width // window_size)
    x = F.pad(x, (0, columns * window_size - width, 0, rows * window_size - height))
    x = x.reshape(n, channels, rows, window_size, columns, window_size)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(n * rows * columns, window_size * window_size, channels)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Join windows into a map and crop the padding, the inverse of `window_partition` (equation 10b).

    Args:
        windows: (N * M, p * p, C).
        window_size: side p of a window, in positions of the map.
        height: H of the map.
        width: W of the map.

    Returns:
        (N, C, H, W).
    """
    rows, columns = -(-height // window_size), -(-width // window_size)
    channels = windows.shape[2]
    x = windows.reshape(-1, rows, columns, window_size, window_size, channels)
    x = x.permute(0, 5, 1, 3, 2, 4)
    x = x.reshape(-1, channels, rows * window_size, columns * window_size)
    return x[:, :, :height, :width]


class CrossTaskAttention(nn.Module):
    """Multi-head attention over the tokens of all tasks (equation 8)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of all tasks in a window: (B, L, C) to (B, L, C)."""
        return self.out(self_attention(self.qkv(x), self.heads))


class CrossTaskLayer(nn.Module):
    """Norm per task, attention over all tasks, feed-forward, norm per task: Z_in to Z_ffn of the paper.

    The residual branches start from the normalized tokens (equation 8), unlike in a pre-norm transformer.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.ModuleDict({task: nn.LayerNorm(channels) for task in WMCA_TASKS})
        self.attention = CrossTaskAttention(channels, heads)
        self.ffn1 = nn.Linear(channels, 4 * channels)
        self.ffn2 = nn.Linear(4 * channels, channels)
        self.norm2 = nn.ModuleDict({task: nn.LayerNorm(channels) for task in WMCA_TASKS})

    def forward(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange features between the tasks: Z_in to Z_ffn.

        Args:
            tokens: (B, L, C) by task; B windows of L tokens.

        Returns:
            (B, L, C) by task.
        """
        z = torch.cat([self.norm1[task](tokens[task]) for task in WMCA_TASKS], dim=1)
        z = z + self.attention(z)
        z = z + self.ffn2(F.gelu(self.ffn1(z)))
        parts = z.chunk(len(WMCA_TASKS), dim=1)
        return {task: self.norm2[task](part) for task, part in zip(WMCA_TASKS, parts, strict=True)}


class WMCALayer(CrossTaskLayer):
    """One layer of WMCA: partition into windows, exchange within each window, reverse."""

    def __init__(self, channels: int, heads: int, window_size: int) -> None:
        super().__init__(channels, heads)
        self.window_size = window_size
        # Attributes of the instance, so that the exporter can replace them by named operators.
        self.partition = window_partition
        self.reverse = window_reverse

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange features within each window (equations 6 to 10): (N, C, H, W) by task, shapes kept."""
        height, width = maps["depth"].shape[2:]
        windows = {task: self.partition(maps[task], self.window_size) for task in WMCA_TASKS}
        windows = super().forward(windows)
        return {task: self.reverse(windows[task], self.window_size, height, width) for task in WMCA_TASKS}


class GlobalLayer(CrossTaskLayer):
    """Ablation 'MHA w/o WMCA' (Table VI): attention over all tokens of a frame instead of windows.

    The paper gives no sizes. At full resolution four maps of 128 x 128 would be 65,536 tokens per frame. The attention
    therefore runs on maps averaged down by `STRIDE`, and its output is upsampled and added to the full-size maps.
    """

    STRIDE = 8

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Exchange features between the tasks over the whole frame: (N, C, H, W) by task, shapes kept."""
        size = maps["depth"].shape[2:]
        small = {t: F.avg_pool2d(maps[t], self.STRIDE, ceil_mode=True) for t in WMCA_TASKS}
        grid = small["depth"].shape[2:]
        tokens = super().forward({t: small[t].flatten(2).transpose(1, 2) for t in WMCA_TASKS})
        result = {}
        for task in WMCA_TASKS:
            update = tokens[task].transpose(1, 2).unflatten(2, grid)
            result[task] = maps[task] + F.interpolate(update, size=size, mode="bilinear")
        return result


class WMCA(nn.Module):
    """The whole block (equation 4a): `cross_layers` layers; four heads and 7 x 7 windows in the paper.

    M2H-small runs it at C/4 channels on a grid pooled by two; `reduce` and `expand` convert the channels.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.reduced = config.separable
        width = config.channels // 4 if self.reduced else config.channels
        if self.reduced:
            self.reduce = nn.ModuleDict({t: nn.Conv2d(config.channels, width, 1) for t in WMCA_TASKS})
            self.expand = nn.ModuleDict({t: nn.Conv2d(width, config.channels, 1) for t in WMCA_TASKS})
        self.layers = nn.ModuleList(
            WMCALayer(width, config.cross_heads, config.window_size)
            if config.cross_task == "wmca"
            else GlobalLayer(width, config.cross_heads)
            for _ in range(config.cross_layers)
        )

    def forward(self, maps: dict[str, Tensor], record: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute F_local^t from F^t (equation 4a).

        Args:
            maps: F^t, (N, C, H, W) by task.
            record: if given, receives the maps after each layer as `wmca_INDEX_TASK`.

        Returns:
            F_local^t, (N, C, H, W) by task.
        """
        if self.reduced:
            maps = {task: F.max_pool2d(self.reduce[task](maps[task]), 2) for task in WMCA_TASKS}
        for index, layer in enumerate(self.layers):
            maps = layer(maps)
            if record is not None:
                record.update({f"wmca_{index}_{task}": maps[task] for task in WMCA_TASKS})
        if self.reduced:
            maps = {task: self.expand[task](upsample2(maps[task])) for task in WMCA_TASKS}
        return maps
