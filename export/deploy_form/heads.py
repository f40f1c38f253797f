"""Task heads that compute as little as possible at full size, one module per head of the reference.

U is the bilinear 2x upsampling (corners aligned), D the last resize to the image (half-pixel).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import batch_norm_affine, copy_of, dense_matrix, fold_batch_norm, plain_conv, pointwise
from export.deploy_form.layers import global_mean, resize_matrix, spread, taps, upsample, upsample_matrix
from export.deploy_form.upsample_blocks import Upsample2, first_block, last_block, second_block
from m2h_deploy.model.heads import (
    ASPP,
    DepthHead,
    EdgesHead,
    NormalsHead,
    SemanticsHead,
    SeparableRefinement,
)
from m2h_deploy.model.layers import resize


class DeployASPP(nn.Module):
    """`ASPP` with the pooled branch, which is constant over the map, as one bias per image. Exact."""

    def __init__(self, aspp: ASPP) -> None:
        super().__init__()
        branches: Any = aspp.branches
        self.branches = nn.ModuleList(fold_batch_norm(branch.conv, branch.norm) for branch in branches)
        scale, shift = batch_norm_affine(aspp.norm)
        matrix = dense_matrix(aspp.project) * scale[:, None]
        width = aspp.pooled.conv.out_channels
        self.project = pointwise(matrix[:, :-width])
        self.pooled = aspp.pooled
        self.pooled_share = pointwise(matrix[:, -width:], shift)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        maps = torch.cat([F.relu(branch(x)) for branch in self.branches], dim=1)
        pooled = F.relu(self.pooled.norm(self.pooled.conv(global_mean(x))))
        share = spread(self.pooled_share(pooled), (x.shape[2], x.shape[3]))
        return F.relu(self.project(maps) + share)


class DeploySeparableRefinement(nn.Module):
    """`SeparableRefinement` with its own copy of the weights: x + relu(conv(x))."""

    def __init__(self, refine: SeparableRefinement) -> None:
        super().__init__()
        self.conv = plain_conv(refine.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x + F.relu(self.conv(x))


class SeparableDepthRefinement(nn.Module):
    """`SeparableRefinement` of x = U y and the eighteen taps of `DepthEnd`. Exact.

    The refinement is x + r with r = relu(conv(x)), and only its taps are read: T (U y + r) = U (T y) + T r. The sum has
    eighteen channels instead of C.
    """

    def __init__(self, head: DepthHead) -> None:
        super().__init__()
        self.conv, self.taps = plain_conv(cast("SeparableRefinement", head.refine).conv), depth_taps(head)

    def forward(self, y: Tensor) -> Tensor:
        """Map features before U (N, C, 2H, 2W) to the taps (N, 18, 4H, 4W)."""
        return self.taps(F.relu(self.conv(upsample(y)))) + upsample(self.taps(y))


class DepthEnd(nn.Module):
    """Spatial attention and last 3x3 of `DepthHead`, both to one channel, from eighteen taps of x.

    conv(s * x) is the sum over the nine offsets of s * (w . x), shifted: the attention s has one channel, so it
    commutes with the 1x1. Exact.
    """

    def __init__(self, head: DepthHead, target: tuple[int, int]) -> None:
        super().__init__()
        self.spatial, self.final = taps(head.spatial)[1], taps(head.final)[1]
        self.min_depth, self.target = head.min_depth, target

    def forward(self, x: Tensor) -> Tensor:
        """Map the taps (N, 18, 4H, 4W) to depth (N, 1, height, width) in meters, at least `min_depth`."""
        spatial, final = x.chunk(2, dim=1)
        depth = self.final(final * torch.sigmoid(self.spatial(spatial)))
        return resize(F.relu(depth), self.target) + self.min_depth


def depth_taps(head: DepthHead) -> nn.Conv2d:
    """Build the 1x1 that computes the eighteen taps of `DepthEnd`."""
    return pointwise(torch.cat((taps(head.spatial)[0], taps(head.final)[0])))


class SemanticsEnd(nn.Module):
    """Spatial attention and classifier of `SemanticsHead`, the resize first: D (K x + b) = K (D x) + b. Exact."""

    def __init__(self, head: SemanticsHead, target: tuple[int, int]) -> None:
        super().__init__()
        matrix, self.spatial = taps(head.spatial)
        self.taps = pointwise(matrix)
        self.final, self.target = copy_of(head.final), target

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, 4H, 4W) to class logits (N, classes, height, width)."""
        attended = x * torch.sigmoid(self.spatial(self.taps(x)))
        return self.final(resize(attended, self.target))


class NormalsEnd(nn.Module):
    """tanh, normalization and resize of three channels, after U if `upsample`."""

    def __init__(self, target: tuple[int, int], *, upsample: bool) -> None:
        super().__init__()
        self.target, self.upsample = target, upsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to normals (N, 3, height, width), unit vectors up to the last bilinear resize."""
        x = upsample(x) if self.upsample else x
        return resize(F.normalize(torch.tanh(x), dim=1), self.target)


class EdgesEnd(nn.Module):
    """The resizes after the last ReLU as two small matrix products: D U z = (Dy Uy) z (Dx Ux)^T. Exact.

    `size` is the size of z; without `upsample` the product is D alone.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int], target: tuple[int, int], *, upsample: bool) -> None:
        super().__init__()
        self.register_buffer("rows", last_resizes(size[0], target[0], upsample=upsample))
        self.register_buffer("columns", last_resizes(size[1], target[1], upsample=upsample).T.contiguous())

    def forward(self, z: Tensor) -> Tensor:
        """Map (N, 1, *size) to edge logits (N, 1, height, width)."""
        return self.rows @ z @ self.columns


def last_resizes(length: int, target: int, *, upsample: bool) -> Tensor:
    """Return D U, or D without `upsample`, along one axis as a matrix (target, length)."""
    if not upsample:
        return resize_matrix(length, target)
    return resize_matrix(2 * length, target) @ upsample_matrix(length)


def deploy_head(head: Any, size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """Build the deploy form of a head: maps (N, C, *size) to its output at the image's size `target`."""
    if isinstance(head, DepthHead | SemanticsHead):
        return attended_head(head, size, target)
    return plain_head(head, size, target)


def attended_head(head: DepthHead | SemanticsHead, size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """Build the deploy form of `DepthHead` or `SemanticsHead`, in the reference's order of operations."""
    first, _ = first_block(head.upsample1, size)
    second, pending = second_block(head.upsample2, size)
    parts: dict[str, nn.Module] = {"aspp": DeployASPP(head.aspp), "upsample1": first, "upsample2": second}
    refine: Any = head.refine
    end: nn.Module
    if isinstance(head, DepthHead) and pending:
        parts["upsample2"] = nn.Sequential(second)  # the block is `upsample2.0` in both heads
        parts["refine"], end = SeparableDepthRefinement(head), DepthEnd(head, target)
    elif isinstance(head, DepthHead):
        parts["refine"] = refine
        end = nn.Sequential(OrderedDict(taps=depth_taps(head), sum=DepthEnd(head, target)))
    else:
        parts["upsample2"] = nn.Sequential(second, Upsample2()) if pending else second
        parts["refine"] = DeploySeparableRefinement(refine) if pending else refine
        end = SemanticsEnd(head, target)
    return nn.Sequential(OrderedDict(parts, end=end))


def plain_head(head: NormalsHead | EdgesHead, size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """Build the deploy form of `NormalsHead` or `EdgesHead`.

    The last 1x1 is merged into the second block, which then has only the few output channels.
    """
    first, pending = first_block(head.upsample1, size)
    last = last_block(head.upsample2, head.final, size)
    if isinstance(head, EdgesHead):
        factor = 2 if pending else 4
        end: nn.Module = EdgesEnd((factor * size[0], factor * size[1]), target, upsample=pending)
    else:
        end = NormalsEnd(target, upsample=pending)
    return nn.Sequential(OrderedDict({"upsample1": first, "upsample2": last, "end": end}))
