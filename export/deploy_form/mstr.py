"""MSTR for static shapes: the class token as a bias, reassembly on tokens, consecutive 1x1 convolutions folded."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import copy_of, fold_separable_1x1, linear, plain_conv
from m2h_deploy.model.mstr import MSTR, Reassemble


def split_readout(readout: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """Split the readout into (Wx, without bias) for patches and (Wc, with b) for the class token.

    W [x; c] + b = Wx x + (Wc c + b): the class token's half is one bias per image. Exact.
    """
    patches, token = readout.weight.chunk(2, dim=1)
    return linear(patches), linear(token, readout.bias)


class DeployReassemble(nn.Module):
    """`Reassemble` on tokens: (N, 1 + h * w, E) to a map (N, C, h', w').

    The projection is a product on the tokens, so that only its C channels are transposed to a map.
    """

    def __init__(self, stage: Reassemble, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.has_readout = stage.readout is not None
        if stage.readout is not None:
            self.patch_readout, self.token_readout = split_readout(stage.readout)
        self.project = linear(*fold_separable_1x1(stage.project))
        self.resize = copy_of(stage.resize) if isinstance(stage.resize, nn.Conv2d) else stage.resize

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, 1 + h * w, E), the class token first, to a map (N, C, h', w')."""
        patches = tokens[:, 1:]
        if self.has_readout:
            patches = F.gelu(self.patch_readout(patches) + self.token_readout(tokens[:, :1]))
        patches = self.project(patches).transpose(1, 2)
        return self.resize(patches.reshape(-1, patches.shape[1], *self.grid))


class DeployMSTR(nn.Module):
    """`MSTR`: four stages of tokens to four maps of C channels, finest first."""

    def __init__(self, mstr: MSTR, grid: tuple[int, int]) -> None:
        super().__init__()
        stages: Any = mstr.stages
        self.stages = nn.ModuleList(DeployReassemble(stage, grid) for stage in stages)
        self.refine = nn.ModuleList(plain_conv(refine) for refine in mstr.refine)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Map four stages of tokens (N, 1 + h * w, E) to four maps (N, C, h_i, w_i), finest first."""
        return [refine(stage(tokens)) for stage, refine, tokens in zip(self.stages, self.refine, stages, strict=True)]
