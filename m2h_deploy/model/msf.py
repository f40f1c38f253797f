"""Multi-scale fusion (MSF): four maps to one preliminary feature map per task (paper, equation 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.config import ModelConfig
from m2h_deploy.model.layers import SeparableConv, conv, resize, upsample2


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), dense 3x3 convolutions without bias. Keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class SeparableResidualUnit(nn.Module):
    """x + separable_conv(gelu(x)). Keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SeparableConv(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.gelu(x))


class FusionBlock(nn.Module):
    """Merges a finer map into the running one and doubles its size: (N, C, H, W) to (N, C, 2H, 2W).

    `skip` is absent in the first block, which has nothing to merge. M2H-small shares one residual unit between
    the finer map and the sum; M2H has one for each.
    """

    def __init__(self, channels: int, *, separable: bool, skip: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 1)
        self.residual = SeparableResidualUnit(channels) if separable else ResidualUnit(channels)
        self.skip_residual = ResidualUnit(channels) if skip and not separable else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if skip is not None:
            skip = resize(skip, (x.shape[2], x.shape[3]))
            unit = self.residual if self.skip_residual is None else self.skip_residual
            x = x + unit(skip)
        return self.project(upsample2(self.residual(x)))


class MSF(nn.Module):
    """The fusion path of one task, coarsest map first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(config.channels, separable=config.separable, skip=index > 0) for index in range(4)
        )
        self.project = conv(config.channels, config.channels, 3, separable=config.separable)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Four maps of C channels, finest first, to F^t: (N, C, 16 ceil(h/2), 16 ceil(w/2)) for h x w patches."""
        x = self.blocks[0](maps[3])
        for block, skip in zip(self.blocks[1:], (maps[2], maps[1], maps[0]), strict=True):
            x = block(x, skip)
        return F.relu(self.project(x))
