"""Multi-scale fusion (MSF): four maps to one preliminary feature map per task (paper, equation 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.config import ModelConfig
from m2h_deploy.model.layers import SeparableConv, conv, resize, upsample2


class ResidualUnit(nn.Module):
    """Residual unit of M2H: x + conv(relu(conv(relu(x)))), dense 3x3 convolutions without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit: (N, C, H, W) to (N, C, H, W)."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class SeparableResidualUnit(nn.Module):
    """Residual unit of M2H-small: x + separable_conv(gelu(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SeparableConv(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the unit: (N, C, H, W) to (N, C, H, W)."""
        return x + self.conv(F.gelu(x))


class FusionBlock(nn.Module):
    """Fusion of a finer map into the running one, which doubles in size.

    The first block has no `skip`. M2H-small uses the same residual unit for the finer map and for the sum; M2H has one
    for each.
    """

    def __init__(self, channels: int, *, separable: bool, skip: bool) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, channels, 1)
        self.residual = SeparableResidualUnit(channels) if separable else ResidualUnit(channels)
        self.skip_residual = ResidualUnit(channels) if skip and not separable else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Merge and upsample.

        Args:
            x: the running map, (N, C, H, W).
            skip: the finer map, (N, C, h, w), resized to H x W; None in the first block.

        Returns:
            (N, C, 2H, 2W).
        """
        if skip is not None:
            skip = resize(skip, (x.shape[2], x.shape[3]))
            unit = self.residual if self.skip_residual is None else self.skip_residual
            x = x + unit(skip)
        return self.project(upsample2(self.residual(x)))


class MSF(nn.Module):
    """Fusion path of one task, from the coarsest map to the finest (equation 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            FusionBlock(config.channels, separable=config.separable, skip=index > 0) for index in range(4)
        )
        self.project = conv(config.channels, config.channels, 3, separable=config.separable)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Compute F^t, the preliminary feature map of the task (equation 3).

        Args:
            maps: four maps of C channels, finest first: 4, 2, 1 and 1/2 times the grid of h x w patches.

        Returns:
            (N, C, 16 ceil(h/2), 16 ceil(w/2)).
        """
        x = self.blocks[0](maps[3])
        for block, skip in zip(self.blocks[1:], (maps[2], maps[1], maps[0]), strict=True):
            x = block(x, skip)
        return F.relu(self.project(x))
