"""Global gated feature merging (GGFM): every task regains global context from the backbone's last stage.

There are two forms. `Restoration` is the block of the published network, on depth and semantics. `GGFM` is the block of
the paper (equations 11 to 14, then 5a), on all four tasks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.config import ModelConfig
from m2h_deploy.model.layers import conv, global_mean, resize
from m2h_deploy.model.msf import FusionBlock
from m2h_deploy.model.mstr import Reassemble
from m2h_deploy.tasks import TASKS


class UniqueFeature(nn.Module):
    """U^t: a task's own map, made from the tokens of the last stage."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        embed_dim, separable = config.backbone.embed_dim, config.separable
        self.reassemble = Reassemble(3, embed_dim, separable=separable, readout=False)
        self.refine = conv(embed_dim, config.channels, 3, separable=separable)
        self.fuse = FusionBlock(config.channels, separable=separable, skip=False)

    def forward(self, patches: Tensor, class_token: Tensor) -> Tensor:
        """Compute U^t.

        Args:
            patches: patch map of the last stage, (N, E, h, w).
            class_token: (N, E), not used: this reassembly has no readout.

        Returns:
            (N, C, 2 ceil(h/2), 2 ceil(w/2)).
        """
        return self.fuse(F.gelu(self.refine(self.reassemble(patches, class_token))))


class Restoration(nn.Module):
    """Gated sum of three streams (before WMCA, after it, unique), followed by a residual feed-forward layer.

    The gate of each stream is computed from the channel means of all three.
    """

    def __init__(self, channels: int, *, separable: bool) -> None:
        super().__init__()
        groups = 4 if separable else 1
        hidden = channels * 3 // 2 if separable else channels * 4
        self.original = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.attended = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        self.unique = nn.Conv2d(channels, channels, 1, groups=groups, bias=False)
        last = nn.Conv2d(channels if not separable else 3 * channels, 3 * channels, 1, bias=False)
        squeeze = [] if separable else [nn.Conv2d(3 * channels, channels, 1, bias=False), nn.ReLU()]
        self.gate = nn.Sequential(*squeeze, last)
        self.ffn1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.ffn2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, attended: Tensor, original: Tensor, unique: Tensor) -> Tensor:
        """Merge the three streams of one task.

        Args:
            attended: F_local^t, after WMCA, (N, C, H, W).
            original: F^t, before WMCA, (N, C, H, W).
            unique: U^t, (N, C, h, w), resized to H x W.

        Returns:
            F_fused^t, (N, C, H, W).
        """
        original, attended, unique = self.original(original), self.attended(attended), self.unique(unique)
        unique = resize(unique, (original.shape[2], original.shape[3]), align_corners=True)
        context = torch.cat([global_mean(x) for x in (original, attended, unique)], dim=1)
        gates = torch.sigmoid(self.gate(context)).chunk(3, dim=1)
        fused = original * gates[0] + attended * gates[1] + unique * gates[2]
        return self.out(fused + self.ffn2(F.relu(self.ffn1(fused))))


class GGFM(nn.Module):
    """Block of the paper: z = GAP(F), g = sigmoid(W2 relu(W1 z) + b), F + g * F + U, merged with F_local (5a)."""

    REDUCTION = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // self.REDUCTION, 1, bias=False)
        self.excite = nn.Conv2d(channels // self.REDUCTION, channels, 1)
        self.merge = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, attended: Tensor, original: Tensor, unique: Tensor) -> Tensor:
        """Merge global context into one task (equations 11 to 14, then 5a).

        Args:
            attended: F_local^t, after WMCA, (N, C, H, W).
            original: F^t, before WMCA, (N, C, H, W).
            unique: U^t, (N, C, h, w), resized to H x W.

        Returns:
            F_fused^t, (N, C, H, W).
        """
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(global_mean(original)))))  # 11, 12
        merged = original + gate * original  # 13
        merged = merged + resize(unique, (original.shape[2], original.shape[3]), align_corners=True)  # 14
        return self.merge(torch.cat((attended, merged), dim=1))  # 5a


class GlobalContext(nn.Module):
    """Global path (equation 4b) and its fusion with the local path, for the tasks that have one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        paper = config.context == "ggfm"
        self.tasks = TASKS if paper else ("depth", "semantics")
        self.unique = nn.ModuleDict({task: UniqueFeature(config) for task in self.tasks})
        self.merge = nn.ModuleDict(
            {
                task: GGFM(config.channels) if paper else Restoration(config.channels, separable=config.separable)
                for task in self.tasks
            }
        )

    def forward(
        self,
        attended: dict[str, Tensor],
        original: dict[str, Tensor],
        last_stage: tuple[Tensor, Tensor],
        record: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Merge the global path (equation 4b) into the local one.

        Args:
            attended: F_local^t, (N, C, H, W) by task.
            original: F^t, (N, C, H, W) by task.
            last_stage: patch map (N, E, h, w) and class token (N, E) of the backbone's last stage.
            record: if given, receives each merged map as `context_TASK`.

        Returns:
            F_fused^t, (N, C, H, W) by task; F_local^t for a task without global path.
        """
        fused = dict(attended)
        for task in self.tasks:
            unique = self.unique[task](*last_stage)
            fused[task] = self.merge[task](attended[task], original[task], unique)
            if record is not None:
                record[f"context_{task}"] = fused[task]
        return fused
