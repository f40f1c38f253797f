"""Multi-scale token reassembly (MSTR): tokens of four backbone stages to four maps (paper, equation 2).

The design is DPT's reassemble block (Ranftl et al. 2021): the class token is mixed into every patch token, the
map is projected and resized to 4, 2, 1 and 1/2 times the patch grid, then brought to the decoder's C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.config import ModelConfig
from m2h_deploy.model.layers import conv


def stage_channels(embed_dim: int) -> tuple[int, int, int, int]:
    """Return the channels of the four reassembled maps: 1/8, 1/4, 1/2 and 1 of the backbone's width."""
    return embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim


def _resize_layer(stage: int, channels: int) -> nn.Module:
    if stage == 0:
        return nn.ConvTranspose2d(channels, channels, 4, stride=4)
    if stage == 1:
        return nn.ConvTranspose2d(channels, channels, 2, stride=2)
    if stage == 2:
        return nn.Identity()
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)


class Reassemble(nn.Module):
    """Reassembly of one stage: tokens to a map of E / 2^(3-stage) channels."""

    def __init__(self, stage: int, embed_dim: int, *, separable: bool, readout: bool) -> None:
        super().__init__()
        channels = stage_channels(embed_dim)[stage]
        self.readout = nn.Linear(2 * embed_dim, embed_dim) if readout else None
        self.project = conv(embed_dim, channels, 1, separable=separable)
        self.resize = _resize_layer(stage, channels)

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        """Reassemble the tokens of one stage (equation 2).

        Args:
            patches: patch map, (N, E, h, w).
            class_token: (N, E), mixed into every patch token if the block has a readout.

        Returns:
            (N, E / 2^(3-stage), h', w'), where h' x w' is 4, 2, 1 or 1/2 (rounded up) times h x w, by stage.
        """
        if self.readout is not None:
            tokens = patches.flatten(2).transpose(1, 2)
            readout = class_token.unsqueeze(1).expand_as(tokens)
            tokens = F.gelu(self.readout(torch.cat((tokens, readout), dim=-1)))
            patches = tokens.transpose(1, 2).unflatten(2, patches.shape[2:])
        return self.resize(self.project(patches))


class MSTR(nn.Module):
    """Reassembly of all four stages. MSF gets each map after a refining 3x3 convolution."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        embed_dim, separable = config.backbone.embed_dim, config.separable
        self.stages = nn.ModuleList(
            Reassemble(stage, embed_dim, separable=separable, readout=True) for stage in range(4)
        )
        self.refine = nn.ModuleList(
            conv(channels, config.channels, 3, separable=separable, bias=False)
            for channels in stage_channels(embed_dim)
        )

    def forward(self, stages: list[tuple[Tensor, Tensor]], record: dict[str, Tensor] | None = None) -> list[Tensor]:
        """Reassemble the tokens of the four stages (equation 2).

        Args:
            stages: patch map (N, E, h, w) and class token (N, E) of each stage.
            record: if given, receives each map before the refining convolution as `reassembled_INDEX`.

        Returns:
            Four maps of C channels, finest first: 4, 2, 1 and 1/2 times the patch grid.
        """
        maps = []
        for index, (stage, refine) in enumerate(zip(self.stages, self.refine, strict=True)):
            reassembled = stage(*stages[index])
            if record is not None:
                record[f"reassembled_{index}"] = reassembled
            maps.append(refine(reassembled))
        return maps
