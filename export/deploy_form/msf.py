"""MSF with its 1x1 projections before the upsampling, where maps have a quarter of the pixels."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import copy_of, plain_conv
from export.deploy_form.layers import upsample
from m2h_deploy.model.layers import resize
from m2h_deploy.model.msf import MSF, FusionBlock


class DeployFusionBlock(nn.Module):
    """`FusionBlock`: project(U x) = U project(x), bias included, because the rows of U sum to 1. Exact."""

    def __init__(self, block: FusionBlock) -> None:
        super().__init__()
        self.residual, self.skip_residual = block.residual, block.skip_residual
        self.project = copy_of(block.project)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Fuse x (N, C, H, W) with `skip`, which has the same shape, to (N, C, 2H, 2W)."""
        if skip is not None:
            unit = self.residual if self.skip_residual is None else self.skip_residual
            x = x + unit(skip)
        return upsample(self.project(self.residual(x)))


class DeployMSF(nn.Module):
    """`MSF`: the fusion path of one task."""

    def __init__(self, msf: MSF) -> None:
        super().__init__()
        blocks: Any = msf.blocks
        self.blocks = nn.ModuleList(DeployFusionBlock(block) for block in blocks)
        self.project = plain_conv(msf.project)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Fuse four maps (N, C, h_i, w_i), finest first, to the task's map F^t, (N, C, 16 h_3, 16 w_3)."""
        x = self.blocks[0](maps[3])
        for block, skip in zip(self.blocks[1:], (maps[2], maps[1], maps[0]), strict=True):
            x = block(x, resize(skip, (x.shape[2], x.shape[3])))
        return F.relu(self.project(x))
