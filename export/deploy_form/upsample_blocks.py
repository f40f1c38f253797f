"""The upsample blocks of the heads: gates from the small map, 1x1 products before the resize.

U is the bilinear 2x upsampling (corners aligned), g a gate per channel, R, Rs and F 1x1 convolutions. M2H-small's
blocks return the map before U, so that a following linear layer can be applied first; M2H's return it at full size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form.fold import bias_of, dense_matrix, fold_batch_norm, pointwise
from export.deploy_form.layers import (
    Gate,
    UpsampledMean,
    global_mean,
    spread,
    upsample,
    upsampled_mean_weights,
)
from m2h_deploy.model.heads import SeparableUpsampleBlock, UpsampleBlock


class Upsample2(nn.Module):
    """U: (N, C, H, W) to (N, C, 2H, 2W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (N, C, H, W) to (N, C, 2H, 2W)."""
        return upsample(x)


class Trunk(nn.Module):
    """The two convolutions that start both kinds of block, norms folded in: x to h, at the size of x."""

    def __init__(self, block: UpsampleBlock | SeparableUpsampleBlock) -> None:
        super().__init__()
        self.conv1 = fold_batch_norm(block.conv1, block.norm1)
        self.conv2 = fold_batch_norm(block.conv2, block.norm2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, Cin, H, W) to h (N, Cout, H, W)."""
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def separable_gate(block: SeparableUpsampleBlock) -> Gate:
    """Build the gate of `SeparableUpsampleBlock`, to be applied to mean(U h).

    R is folded into its squeeze: S mean(R U h) = (S R) mean(U h).
    """
    squeeze = dense_matrix(block.gate.squeeze) @ dense_matrix(block.refine)
    return Gate((squeeze, None), (dense_matrix(block.gate.excite), None))


def transposed_gate(block: UpsampleBlock) -> Gate:
    """Build the gate of `UpsampleBlock`, to be applied to mean(h). Exact.

    A transposed convolution of kernel and stride 2 writes each position into its own four cells, so the mean of its
    output is the mean of its four matrices times the mean of its input, plus its bias.
    """
    up = block.up
    squeeze, mean = dense_matrix(block.gate.squeeze), up.weight.mean((2, 3)).T
    assert up.bias is not None
    return Gate((squeeze @ mean, squeeze @ up.bias), (dense_matrix(block.gate.excite), None))


class DeploySeparableUpsampleBlock(nn.Module):
    """`SeparableUpsampleBlock` before U: g * (R U h) + Rs U x = U (diag(g) R h + Rs x). Exact."""

    def __init__(self, block: SeparableUpsampleBlock, size: tuple[int, int]) -> None:
        super().__init__()
        self.trunk = Trunk(block)
        self.mean = UpsampledMean(block.refine.in_channels, *size)
        self.gate = separable_gate(block)
        self.refine = pointwise(dense_matrix(block.refine))
        self.residual = pointwise(dense_matrix(block.residual))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, Cin, H, W) to the block's output before U, (N, Cout, H, W)."""
        h = self.trunk(x)
        gate = spread(self.gate(self.mean(h)), (h.shape[2], h.shape[3]))
        return self.refine(h) * gate + self.residual(x)


class UpsampledSeparableBlock(DeploySeparableUpsampleBlock):
    """`DeploySeparableUpsampleBlock` on x = U w: the residual product is taken before U, Rs U w = U Rs w. Exact.

    The product has a quarter of the pixels, and U half of the channels.
    """

    def __init__(self, block: SeparableUpsampleBlock, size: tuple[int, int]) -> None:
        """Build the block for maps w of `size`."""
        super().__init__(block, (2 * size[0], 2 * size[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map w (N, Cin, H, W) to the block's output before its own U, (N, Cout, 2H, 2W)."""
        h = self.trunk(upsample(x))
        gate = spread(self.gate(self.mean(h)), (h.shape[2], h.shape[3]))
        return self.refine(h) * gate + upsample(self.residual(x))


class LastSeparableBlock(nn.Module):
    """`SeparableUpsampleBlock` on x = U w and the 1x1 head F after it, before its own U. Exact.

    F (g * (R U h) + Rs U x) = U (M h + U (F Rs) w) with M = F diag(g) R, one matrix per image: only F's few channels
    are upsampled. The products with h are taken with the channels last: OpenVINO has h in this layout, and ONNX Runtime
    leaves its own for either at the same cost. (N, Cin, H, W) to (N, Cout, 2H, 2W).
    """

    mean: Tensor
    refine: Tensor
    head: Tensor

    def __init__(self, block: SeparableUpsampleBlock, final: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.trunk = Trunk(block)
        self.gate = separable_gate(block)
        head = dense_matrix(final)
        self.residual = pointwise(head @ dense_matrix(block.residual), bias_of(final))
        self.size = (2 * size[0], 2 * size[1])
        self.register_buffer("mean", upsampled_mean_weights(*self.size).reshape(1, -1))
        self.register_buffer("refine", dense_matrix(block.refine))
        self.register_buffer("head", head)

    def forward(self, w: Tensor) -> Tensor:
        """Map w (N, Cin, H, W) to the head's output before the last U, (N, Cout, 2H, 2W)."""
        h = self.trunk(upsample(w)).permute(0, 2, 3, 1).reshape(-1, self.size[0] * self.size[1], self.refine.shape[1])
        gate = self.gate((self.mean @ h).transpose(1, 2).unsqueeze(-1))
        matrix = (self.head * gate.flatten(2).transpose(1, 2)) @ self.refine
        gated = (h @ matrix.transpose(1, 2)).reshape(-1, *self.size, self.head.shape[0])
        return gated.permute(0, 3, 1, 2) + upsample(self.residual(w))


class DeployUpsampleBlock(nn.Module):
    """`UpsampleBlock` with the gate computed from h and the residual product before U. Exact."""

    def __init__(self, block: UpsampleBlock) -> None:
        super().__init__()
        self.trunk, self.up = Trunk(block), block.up
        self.gate = transposed_gate(block)
        self.residual = pointwise(dense_matrix(block.residual), bias_of(block.residual))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, Cin, H, W) to (N, Cout, 2H, 2W)."""
        h = self.trunk(x)
        return self.up(h) * self.gate(global_mean(h)) + upsample(self.residual(x))


class LastUpsampleBlock(nn.Module):
    """`UpsampleBlock` and the 1x1 head F after it: (N, Cin, H, W) to (N, Cout, 2H, 2W). Exact.

    F (g * up(h)) is one matrix F diag(g) W per image for each of the four cells, so few channels are computed before
    the cells are interleaved. The other half is U (F Rs x + F b).
    """

    head: Tensor
    cells: Tensor

    def __init__(self, block: UpsampleBlock, final: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.trunk, self.gate, self.size = Trunk(block), transposed_gate(block), (2 * size[0], 2 * size[1])
        head, up = dense_matrix(final), block.up
        assert up.bias is not None
        # (Cin, Cout, 2, 2) with the bias as an additional input channel, to (Cout, cells * (Cin + 1)).
        bias = up.bias[None, :, None, None].expand(1, -1, 2, 2)
        cells = torch.cat((up.weight, bias)).permute(1, 2, 3, 0)
        self.register_buffer("head", head)
        self.register_buffer("cells", cells.flatten(1))
        residual = dense_matrix(block.residual)
        self.residual = pointwise(head @ residual, head @ bias_of(block.residual) + bias_of(final))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (N, Cin, H, W) to the head's output, (N, Cout, 2H, 2W)."""
        h = self.trunk(x)
        gate = self.gate(global_mean(h)).flatten(2).transpose(1, 2)
        matrix = ((self.head * gate) @ self.cells).reshape(-1, 4 * self.head.shape[0], h.shape[1] + 1)
        cells = matrix[:, :, :-1] @ h.flatten(2) + matrix[:, :, -1:]
        return F.pixel_shuffle(cells.reshape(-1, cells.shape[1], *self.size), 2) + upsample(self.residual(x))


def first_block(block: Any, size: tuple[int, int]) -> tuple[nn.Module, bool]:
    """Build the deploy form of a block for maps of `size`, and tell whether its U is still to be applied."""
    if isinstance(block, SeparableUpsampleBlock):
        return DeploySeparableUpsampleBlock(block, size), True
    return DeployUpsampleBlock(block), False


def second_block(block: Any, size: tuple[int, int]) -> tuple[nn.Module, bool]:
    """Build the deploy form of the block after `first_block`; `size` is the first block's, before its U."""
    if isinstance(block, SeparableUpsampleBlock):
        return UpsampledSeparableBlock(block, size), True
    return DeployUpsampleBlock(block), False


def last_block(block: Any, final: nn.Conv2d, size: tuple[int, int]) -> nn.Module:
    """Build a head's second block merged with its last 1x1; `size` is the size of the head's input."""
    if isinstance(block, SeparableUpsampleBlock):
        return LastSeparableBlock(block, final, size)
    return LastUpsampleBlock(block, final, size)
