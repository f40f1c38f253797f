"""The reference network with everything precomputed that a static image size determines; the same function."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.backbone import DINOv2, center_pad
from m2h_deploy.model.network import M2H


class StaticDINOv2(nn.Module):
    """DINOv2 for one image size: padding and position embeddings are constants.

    The class token enters as a leading zero token plus a constant whose first row is class token + position: the sum is
    the same, and the graph never repeats a tensor to the batch size.
    """

    positions: Tensor

    def __init__(self, backbone: DINOv2, height: int, width: int) -> None:
        super().__init__()
        patch = backbone.config.patch_size
        self.config = backbone.config
        self.patch_embed = backbone.patch_embed
        self.blocks = backbone.blocks
        self.grid = (-(-height // patch), -(-width // patch))
        with torch.no_grad():
            positions = backbone.position_embedding(self.grid).clone()
            positions[:, :1] += backbone.cls_token
        self.register_buffer("positions", positions)

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Encode images (N, 3, H, W); same output as `DINOv2.forward`."""
        tokens = self.patch_embed(center_pad(image, self.config.patch_size))
        tokens = F.pad(tokens, (0, 0, 1, 0)) + self.positions
        stages = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.config.stages:
                patches = tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)
                stages.append((patches, tokens[:, 0]))
        return stages


def to_static(model: M2H, height: int, width: int) -> M2H:
    """Return a copy of `model` for images of `height` x `width` pixels; weights are shared, `model` is not modified."""
    memo = {id(parameter): parameter for parameter in (*model.parameters(), *model.buffers())}
    static = copy.deepcopy(model, memo)
    static.backbone = StaticDINOv2(static.backbone, height, width)  # type: ignore[assignment]
    return static.eval()
