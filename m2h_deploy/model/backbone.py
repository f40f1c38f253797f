"""DINOv2: the vision transformer that turns an image into multi-scale tokens (paper, equation 1).

Parameter names are DINOv2's own, so that its weights fit without renaming. Attention goes through
`scaled_dot_product_attention`: the memory-efficient attention of the paper's MEViT blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.attention import self_attention
from m2h_deploy.model.config import BackboneConfig

#: DINOv2 resizes position embeddings by scale factors that carry this offset (no antialias). Weights trained
#: with it expect it: without it the numbers change.
_POSITION_OFFSET = 0.1


class Attention(nn.Module):
    """Multi-head self-attention: (N, L, C) to (N, L, C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self_attention(self.qkv(x), self.heads))


class LayerScale(nn.Module):
    """A learned scale per channel on a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, mlp_ratio * dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches of p x p pixels to tokens: (N, 3, H, W) to (N, H/p * W/p, C)."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).transpose(1, 2)


class DINOv2(nn.Module):
    """The backbone: an image to four stages of (patch map, class token).

    `norm` and `mask_token` belong to DINOv2's checkpoints but are not on M2H's path (the stages are taken before
    the last norm); they are kept so that checkpoints load strictly.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.position_grid**2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """image (N, 3, H, W), any size; returns per stage the patch map (N, C, h, w) and class token (N, C).

        The image is padded with zeros around its center to whole patches: h = ceil(H / p), w = ceil(W / p).
        """
        image = center_pad(image, self.config.patch_size)
        grid = (image.shape[2] // self.config.patch_size, image.shape[3] // self.config.patch_size)
        tokens = self.patch_embed(image)
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        tokens = tokens + self.position_embedding(grid)
        stages = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.config.stages:
                patches = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
                stages.append((patches, tokens[:, 0]))
        return stages

    def position_embedding(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of (h, w) patches: (1, 1 + h * w, C), resized bicubically."""
        side = self.config.position_grid
        if grid == (side, side):
            return self.pos_embed
        patches = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = tuple((length + _POSITION_OFFSET) / side for length in grid)
        patches = F.interpolate(patches.float(), scale_factor=scale, mode="bicubic")
        patches = patches.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :1], patches), dim=1)


def center_pad(image: Tensor, multiple: int) -> Tensor:
    """Zeros around the image until height and width are multiples of `multiple`; the odd one goes last."""
    pads: list[int] = []
    for size in (image.shape[3], image.shape[2]):
        total = math.ceil(size / multiple) * multiple - size
        pads += [total // 2, total - total // 2]
    return F.pad(image, pads) if any(pads) else image
