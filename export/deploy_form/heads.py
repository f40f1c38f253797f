"""Task heads with as little as possible at the full size.

U is the bilinear 2x upsampling (corners aligned), D the last resize (half-pixel), R, Rs and F 1x1 convolutions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import (
    batch_norm_affine,
    bias_of,
    copy_of,
    dense_matrix,
    fold_batch_norm,
    plain_conv,
    pointwise,
)
from export.deploy_form.layers import (
    Gate,
    UpsampledMean,
    global_mean,
    resize_matrix,
    spread,
    taps,
    upsample,
    upsampled_mean_weights,
)
from m2h_deploy.model.heads import (
    ASPP,
    AttendedHead,
    DepthHead,
    NormalsHead,
    PlainHead,
    SemanticsHead,
    SeparableRefinement,
    SeparableUpsampleBlock,
    UpsampleBlock,
)
from m2h_deploy.model.layers import resize


class DeployASPP(nn.Module):
    """`ASPP`: the pooled branch is the same everywhere, so its share of the projection is a bias an image. Exact."""

    def __init__(self, aspp: ASPP) -> None:
        super().__init__()
        self.branches = nn.ModuleList(fold_batch_norm(branch.conv, branch.norm) for branch in aspp.branches)
        scale, shift = batch_norm_affine(aspp.norm)
        matrix = dense_matrix(aspp.project) * scale[:, None]
        width = aspp.pooled.conv.out_channels
        self.project = pointwise(matrix[:, :-width])
        self.pooled = aspp.pooled
        self.pooled_share = pointwise(matrix[:, -width:], shift)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([F.relu(branch(x)) for branch in self.branches], dim=1)
        pooled = F.relu(self.pooled.norm(self.pooled.conv(global_mean(x))))
        share = spread(self.pooled_share(pooled), (x.shape[2], x.shape[3]))
        return F.relu(self.project(maps) + share)


class SeparableTrunk(nn.Module):
    """The two separable convolutions of `SeparableUpsampleBlock`: x to h at the small size, norms folded in."""

    def __init__(self, block: SeparableUpsampleBlock) -> None:
        super().__init__()
        self.conv1 = fold_batch_norm(block.conv1, block.norm1)
        self.conv2 = fold_batch_norm(block.conv2, block.norm2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def upsampled_gate(block: SeparableUpsampleBlock) -> Gate:
    """The gate of `SeparableUpsampleBlock` from mean(U h). Its squeeze takes R in: S mean(R U h) = (S R) mean(U h)."""
    squeeze = dense_matrix(block.gate.squeeze) @ dense_matrix(block.refine)
    return Gate((squeeze, None), (dense_matrix(block.gate.excite), None))


class DeploySeparableUpsampleBlock(nn.Module):
    """`SeparableUpsampleBlock`: g * (R U h) + Rs U x = U (diag(g) R h + Rs x), one resize instead of two. Exact.

    `forward` returns the map before U, so that a reader that is linear can be put in front of it.
    """

    def __init__(self, block: SeparableUpsampleBlock, height: int, width: int) -> None:
        super().__init__()
        self.trunk = SeparableTrunk(block)
        self.mean = UpsampledMean(block.refine.in_channels, height, width)
        self.gate = upsampled_gate(block)
        self.refine = pointwise(dense_matrix(block.refine))
        self.residual = pointwise(dense_matrix(block.residual))

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        gate = spread(self.gate(self.mean(h)), (h.shape[2], h.shape[3]))
        return self.refine(h) * gate + self.residual(x)


class MergedLastBlock(nn.Module):
    """`SeparableUpsampleBlock` and a 1x1 head F after it, for an input that is itself U w.

    F (g * (R U h) + Rs U x) = U (M h + U (F Rs) w) with M = F diag(g) R of one image: only F's few channels are ever
    upsampled. Exact. (N, Cin, H, W) before U to (N, Cout, 2H, 2W), which is before U again.
    """

    def __init__(self, block: SeparableUpsampleBlock, final: nn.Conv2d, height: int, width: int) -> None:
        super().__init__()
        self.trunk = SeparableTrunk(block)
        self.gate = upsampled_gate(block)
        head = dense_matrix(final)
        self.residual = pointwise(head @ dense_matrix(block.residual), bias_of(final))
        self.size = (2 * height, 2 * width)
        self.register_buffer("mean", upsampled_mean_weights(*self.size).reshape(-1, 1))
        self.register_buffer("refine", dense_matrix(block.refine))
        self.register_buffer("head", head)

    def forward(self, w: Tensor) -> Tensor:
        h = self.trunk(upsample(w)).flatten(2)
        gate = self.gate((h @ self.mean).unsqueeze(-1))
        matrix = (self.head * gate.flatten(2).transpose(1, 2)) @ self.refine
        gated = matrix @ h
        return gated.reshape(-1, gated.shape[1], *self.size) + upsample(self.residual(w))


class SeparableNormalsHead(nn.Module):
    """`NormalsHead` of M2H-small: three channels upsampled to full size, then tanh, unit length, resize."""

    def __init__(self, head: PlainHead, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.upsample1 = DeploySeparableUpsampleBlock(head.upsample1, *size)
        self.upsample2 = MergedLastBlock(head.upsample2, head.final, *size)
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        z = upsample(self.upsample2(self.upsample1(x)))
        return resize(F.normalize(torch.tanh(z), dim=1), self.target)


class SeparableEdgesHead(nn.Module):
    """`EdgesHead` of M2H-small: linear after its last ReLU, so that D U z = (Dy Uy) z (Dx Ux)^T. Exact."""

    def __init__(self, head: PlainHead, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.upsample1 = DeploySeparableUpsampleBlock(head.upsample1, *size)
        self.upsample2 = MergedLastBlock(head.upsample2, head.final, *size)
        self.register_buffer("rows", last_resizes(size[0], target[0]))
        self.register_buffer("columns", last_resizes(size[1], target[1]).T.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return self.rows @ self.upsample2(self.upsample1(x)) @ self.columns


def last_resizes(length: int, target: int) -> Tensor:
    """D U of one axis as one matrix (target, 2 * length): from a head's second map to the image."""
    full = resize_matrix(2 * length, 4 * length, align_corners=True)
    if target == 4 * length:
        return full
    return resize_matrix(4 * length, target) @ full


class FullSizeMap(nn.Module):
    """x = v + relu(conv(v)) with v = U w: the one map of an attended head of M2H-small that needs the full size."""

    def __init__(self, refine: SeparableRefinement) -> None:
        super().__init__()
        self.refine = plain_conv(refine.conv)

    def forward(self, w: Tensor) -> Tensor:
        v = upsample(w)
        return v + F.relu(self.refine(v))


class DepthEnd(nn.Module):
    """Spatial attention and the last 3x3 of `DepthHead`, both to one channel, from eighteen taps of x.

    conv(s * x) = sum over offsets of (s * (w_d . x)) shifted: the attention s, one channel, goes past the 1x1. Exact.
    """

    def __init__(self, head: DepthHead, target: tuple[int, int]) -> None:
        super().__init__()
        spatial, self.spatial = taps(head.spatial)
        final, self.final = taps(head.final)
        self.taps = pointwise(torch.cat((spatial, final)))
        self.min_depth, self.target = head.min_depth, target

    def forward(self, x: Tensor) -> Tensor:
        spatial, final = self.taps(x).chunk(2, dim=1)
        depth = self.final(final * torch.sigmoid(self.spatial(spatial)))
        return resize(F.relu(depth), self.target) + self.min_depth


class SemanticsEnd(nn.Module):
    """Spatial attention and classifier of `SemanticsHead`, the resize before it: D (K x + b) = K (D x) + b. Exact."""

    def __init__(self, head: SemanticsHead, target: tuple[int, int]) -> None:
        super().__init__()
        matrix, self.spatial = taps(head.spatial)
        self.taps = pointwise(matrix)
        self.final, self.target = copy_of(head.final), target

    def forward(self, x: Tensor) -> Tensor:
        attended = x * torch.sigmoid(self.spatial(self.taps(x)))
        return self.final(resize(attended, self.target))


class SeparableAttendedHead(nn.Module):
    """`DepthHead` and `SemanticsHead` of M2H-small."""

    def __init__(self, head: AttendedHead, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.aspp = DeployASPP(head.aspp)
        self.upsample1 = DeploySeparableUpsampleBlock(head.upsample1, *size)
        self.upsample2 = DeploySeparableUpsampleBlock(head.upsample2, 2 * size[0], 2 * size[1])
        self.full = FullSizeMap(head.refine)
        self.end = end_of(head, target)

    def forward(self, x: Tensor) -> Tensor:
        x = self.upsample2(upsample(self.upsample1(self.aspp(x))))
        return self.end(self.full(x))


def end_of(head: AttendedHead, target: tuple[int, int]) -> nn.Module:
    """What follows the refinement of an attended head, at the image's size."""
    if isinstance(head, DepthHead):
        return DepthEnd(head, target)
    assert isinstance(head, SemanticsHead)
    return SemanticsEnd(head, target)


def deploy_head(head: nn.Module, size: tuple[int, int], target: tuple[int, int]) -> nn.Module:
    """The deploy form of a head for maps of `size`, its output at the image's size `target`."""
    if isinstance(head.upsample1, UpsampleBlock):
        return ReferenceHead(head, target)
    if isinstance(head, AttendedHead):
        return SeparableAttendedHead(head, size, target)
    assert isinstance(head, PlainHead)
    return (SeparableNormalsHead if isinstance(head, NormalsHead) else SeparableEdgesHead)(head, size, target)


class ReferenceHead(nn.Module):
    """A head as the reference runs it."""

    def __init__(self, head: nn.Module, target: tuple[int, int]) -> None:
        super().__init__()
        self.head, self.target = head, target

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.head(x), self.target)
