"""DINOv2 for one static image size: embeddings are constants, scales are folded into weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import convolution, linear
from export.deploy_form.layers import attention
from m2h_deploy.model.backbone import Block, DINOv2, center_pad


def attention_projections(block: Block) -> tuple[nn.Linear, nn.Linear]:
    """Return `qkv` with the attention scale 1 / sqrt(d) in its query rows, and `proj` with LayerScale in its rows.

    (s Wq x + s bq) . k = s (Wq x + bq) . k, and diag(g) (W x + b) = (diag(g) W) x + g b. Exact.
    """
    source = block.attn
    dim = source.proj.in_features
    scale = torch.ones(3 * dim, dtype=source.qkv.weight.dtype)
    scale[:dim] = 1.0 / math.sqrt(dim // source.heads)
    qkv = linear(source.qkv.weight * scale[:, None], source.qkv.bias * scale)
    return qkv, fold_layer_scale(source.proj, block.ls1.gamma)


def fold_layer_scale(layer: nn.Linear, gamma: Tensor) -> nn.Linear:
    """Fold LayerScale into a linear layer: gamma * (W x + b) = (diag(gamma) W) x + gamma b. Exact."""
    return linear(layer.weight * gamma[:, None], layer.bias * gamma)


class DeployBlock(nn.Module):
    """`m2h_deploy.model.backbone.Block` with its scales folded into the weights."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.heads = block.attn.heads
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj = attention_projections(block)
        self.fc1 = block.mlp.fc1
        self.fc2 = fold_layer_scale(block.mlp.fc2, block.ls2.gamma)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (N, 1 + h * w, E) to tokens of the same shape."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.proj(attention(query, key, value, self.heads))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class DeployDINOv2(nn.Module):
    """`DINOv2`: an image (N, 3, H, W) to four stages of tokens (N, 1 + h * w, E), the class token first."""

    embedding: Tensor

    def __init__(self, backbone: DINOv2, height: int, width: int) -> None:
        super().__init__()
        self.stages, self.patch_size = backbone.config.stages, backbone.config.patch_size
        self.grid = (math.ceil(height / self.patch_size), math.ceil(width / self.patch_size))
        projection = backbone.patch_embed.proj
        self.patch_embed = convolution(projection.weight, stride=self.patch_size)
        self.register_buffer("embedding", token_constant(backbone, self.grid))
        # The output of blocks after the last stage is never read.
        blocks: Any = backbone.blocks[: self.stages[-1] + 1]
        self.blocks = nn.ModuleList(DeployBlock(block) for block in blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode normalized images (N, 3, H, W).

        Returns:
            The tokens (N, 1 + h * w, E) after each of the four stages, the class token first; h and w are the number of
            patches along each side.
        """
        patches = self.patch_embed(center_pad(image, self.patch_size))
        tokens = F.pad(patches.flatten(2).transpose(1, 2), (0, 0, 1, 0)) + self.embedding
        stages = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.stages:
                stages.append(tokens)
        return stages


def token_constant(backbone: DINOv2, grid: tuple[int, int]) -> Tensor:
    """Return the constant (1, 1 + h * w, E) to add to a zero token and the patch projections without bias.

    Row 0 is the class token and its position, the others are position and the projection's bias. Exact. A leading zero
    row instead of a concatenated class token keeps the batch size dynamic.
    """
    positions = backbone.position_embedding(grid)
    bias = backbone.patch_embed.proj.bias
    assert bias is not None
    first = positions[:, :1] + backbone.cls_token
    return torch.cat((first, positions[:, 1:] + bias), dim=1).detach()
