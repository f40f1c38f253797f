"""Multi-head self-attention, which the backbone and WMCA share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend from every token to every token: (N, L, 3C), queries, keys and values side by side, to (N, L, C)."""
    batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    split = (batch, length, heads, channels // heads)
    q, k, v = (part.reshape(split).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(batch, length, channels)
