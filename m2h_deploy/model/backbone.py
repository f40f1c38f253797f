"""DINOv2: the vision transformer that turns an image into multi-scale tokens (paper, equation 1).

Parameters have DINOv2's own names, so that its weights load without renaming. Attention uses
`scaled_dot_product_attention`, the memory-efficient attention of the paper's MEViT blocks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.attention import self_attention
from m2h_deploy.model.config import BackboneConfig

#: Offset that DINOv2 adds to the grid size when it computes the scale factors for resizing position embeddings
#: (without antialiasing). Its weights were trained with this offset, so the outputs differ without it.
_POSITION_OFFSET = 0.1


class Attention(nn.Module):
    """Multi-head self-attention: (N, L, C) to (N, L, C)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every token to every token: (N, L, C) to (N, L, C)."""
        return self.proj(self_attention(self.qkv(x), self.heads))


class LayerScale(nn.Module):
    """A learned scale per channel on a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each channel of (N, L, C) by its scale; the shape is kept."""
        return x * self.gamma


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two layers to each token: (N, L, C) to (N, L, C)."""
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
        """Add the attention and the MLP branch to the tokens: (N, L, C) to (N, L, C)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Patches of p x p pixels to tokens: (N, 3, H, W) to (N, H/p * W/p, C)."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches in row order: (N, 3, H, W), H and W multiples of p, to (N, H/p * W/p, C)."""
        return self.proj(image).flatten(2).transpose(1, 2)


class DINOv2(nn.Module):
    """Backbone: an image to four stages of (patch map, class token).

    M2H does not use `norm` and `mask_token`, because it takes the stages before the last norm. They are kept so that
    DINOv2's checkpoints load strictly.
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
        """Compute the tokens of the four stages (equation 1).

        The image is padded with zeros around its center to whole patches: h = ceil(H / p), w = ceil(W / p).

        Args:
            image: (N, 3, H, W), normalized; any H and W.

        Returns:
            The patch map (N, C, h, w) and the class token (N, C) of each stage.
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
        """Resize the position embeddings bicubically to a grid of (h, w) patches: (1, 1 + h * w, C)."""
        side = self.config.position_grid
        if grid == (side, side):
            return self.pos_embed
        patches = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = tuple((length + _POSITION_OFFSET) / side for length in grid)
        patches = F.interpolate(patches.float(), scale_factor=scale, mode="bicubic")
        patches = patches.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)
        return torch.cat((self.pos_embed[:, :1], patches), dim=1)


def center_pad(image: Tensor, multiple: int) -> Tensor:
    """Pad (N, C, H, W) with zeros on all sides until H and W are multiples of `multiple`.

    If the padding of a dimension is odd, the extra row or column goes to the bottom or right.
    """
    pads: list[int] = []
    for size in (image.shape[3], image.shape[2]):
        total = math.ceil(size / multiple) * multiple - size
        pads += [total // 2, total - total // 2]
    return F.pad(image, pads) if any(pads) else image
