"""The global path for static shapes: every product runs before the resize that follows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import dense_matrix, fold_pointwise_pair, plain_conv, pointwise
from export.deploy_form.layers import UpsampledMean, global_mean, spread, upsample, upsample_matrix
from export.deploy_form.mstr import DeployReassemble
from export.deploy_form.wmca import LocalPath
from m2h_deploy.model.ggfm import GlobalContext, Restoration, UniqueFeature

#: From the unique feature's size to that of the task maps: 2 ceil(h/2) to 16 ceil(h/2).
UNIQUE_FACTOR = 8


class DeployUniqueFeature(nn.Module):
    """`UniqueFeature` up to its first resize, with the following projection `unique` folded in.

    Wu U (P x + p) = U ((Wu P) x + Wu p). Exact. Tokens (N, 1 + h * w, E) to (N, C, ceil(h/2), ceil(w/2)).
    """

    def __init__(self, unique: UniqueFeature, projection: nn.Conv2d, grid: tuple[int, int]) -> None:
        super().__init__()
        self.reassemble = DeployReassemble(unique.reassemble, grid)
        self.refine = plain_conv(unique.refine)
        self.residual = unique.fuse.residual
        self.project = pointwise(*fold_pointwise_pair(unique.fuse.project, projection))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map the last stage's tokens (N, 1 + h * w, E) to a map (N, C, ceil(h/2), ceil(w/2))."""
        return self.project(self.residual(F.gelu(self.refine(self.reassemble(tokens)))))


class DeployRestoration(nn.Module):
    """`Restoration` with the gates and products of each stream at that stream's own size.

    g * (W U x) = U (g * (W x)) for a gate g per channel, and the mean of U x is a weighted mean of x. The end is O (z +
    F2 relu(F1 z)) = O z + (O F2) relu(F1 z). Exact. `expand` is WMCA's 1x1 back to C channels, None in a network
    without it; with `expand`, `attended` is the map before `expand` and its upsampling.
    """

    def __init__(
        self,
        merge: Restoration,
        unique: UniqueFeature,
        expand: nn.Conv2d | None,
        grid: tuple[int, int],
    ) -> None:
        super().__init__()
        channels = merge.out.out_channels
        small = (-(-grid[0] // 2), -(-grid[1] // 2))
        self.reduced = expand is not None
        self.unique = DeployUniqueFeature(unique, merge.unique, grid)
        self.original = pointwise(dense_matrix(merge.original))
        attended = (dense_matrix(merge.attended), None)
        self.attended = pointwise(*(attended if expand is None else fold_pointwise_pair(expand, merge.attended)))
        self.attended_mean = UpsampledMean(channels, 8 * small[0], 8 * small[1]) if expand is not None else None
        self.register_buffer("unique_mean", composite_mean_weights(small).reshape(-1, 1))
        self.squeeze = merge.gate[:-1]
        # One product per stream: splitting the gates would leave the convolutions' channel-blocked layout.
        last: Any = merge.gate[-1]
        self.gates = nn.ModuleList(pointwise(part) for part in dense_matrix(last).chunk(3))
        self.ffn1 = pointwise(dense_matrix(merge.ffn1))
        self.ffn2 = pointwise(fold_pointwise_pair(merge.ffn2, merge.out)[0])
        self.out = pointwise(dense_matrix(merge.out))

    def forward(self, attended: Tensor, original: Tensor, tokens: Tensor) -> Tensor:
        """Merge the local map, the task's map and the unique feature.

        Args:
            attended: The local map: (N, C, H, W), or with `expand` the stacked map (N, T * C', H / 2, W / 2).
            original: The task's map F^t, (N, C, H, W).
            tokens: The last stage's tokens, (N, 1 + h * w, E).

        Returns:
            F_fused^t, (N, C, H, W).
        """
        original, attended, unique = self.original(original), self.attended(attended), self.unique(tokens)
        means = (
            global_mean(original),
            global_mean(attended) if self.attended_mean is None else self.attended_mean(attended),
            (unique.flatten(2) @ self.unique_mean).unsqueeze(-1),
        )
        context = self.squeeze(torch.cat(means, dim=1))
        gates = [torch.sigmoid(gate(context)) for gate in self.gates]
        size = (original.shape[2], original.shape[3])
        attended = attended * spread(gates[1], (attended.shape[2], attended.shape[3]))
        fused = original * spread(gates[0], size) + (upsample(attended) if self.reduced else attended)
        fused = fused + upsample(upsample(unique * gates[2]), UNIQUE_FACTOR)
        return self.out(fused) + self.ffn2(F.relu(self.ffn1(fused)))


def composite_mean_weights(size: tuple[int, int]) -> Tensor:
    """Return weights (height, width) of the mean over both resizes of the unique feature: by 2, then by 8."""
    rows, columns = ((upsample_matrix(2 * n, UNIQUE_FACTOR) @ upsample_matrix(n)).mean(0) for n in size)
    return torch.outer(rows, columns)


class ReferenceMerge(nn.Module):
    """The paper's GGFM (`context="ggfm"`) as the reference runs it, on the deploy form's inputs."""

    def __init__(self, context: GlobalContext, task: str, local: LocalPath, grid: tuple[int, int]) -> None:
        super().__init__()
        self.unique, self.merge = context.unique[task], context.merge[task]
        self.local, self.task, self.grid = local, task, grid

    def forward(self, attended: Tensor, original: Tensor, tokens: Tensor) -> Tensor:
        """Merge as `DeployRestoration.forward` does, with the same inputs and output."""
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)
        return self.merge(self.local.full(self.task, attended), original, self.unique(patches, tokens[:, 0]))


def deploy_merge(context: GlobalContext, task: str, local: LocalPath, grid: tuple[int, int]) -> nn.Module:
    """Build the merge of one task: (local map, F^t, last stage's tokens) to F_fused^t, (N, C, H, W)."""
    merge = context.merge[task]
    if not isinstance(merge, Restoration):
        return ReferenceMerge(context, task, local, grid)
    unique: Any = context.unique[task]
    expand: Any = local.expand[task] if local.reduced else None
    return DeployRestoration(merge, unique, expand, grid)
