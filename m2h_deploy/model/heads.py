"""Task heads: a fused map of a quarter of the decoder's output size to one dense output (paper, equation 5b)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model.config import ModelConfig
from m2h_deploy.model.layers import SeparableConv, conv, global_mean, upsample2


class ChannelGate(nn.Module):
    """Squeeze-and-excitation gate over channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.excite = nn.Conv2d(channels // 4, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gate: (N, C, H, W) to (N, C, 1, 1) in 0..1."""
        return torch.sigmoid(self.excite(F.relu(self.squeeze(global_mean(x)))))


class UpsampleBlock(nn.Module):
    """Gated transposed convolution with a bilinear residual branch; doubles height and width."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.up = nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2)
        self.residual = nn.Conv2d(in_channels, out_channels, 1)
        self.gate = ChannelGate(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample a map by two: (N, Cin, H, W) to (N, Cout, 2H, 2W)."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = self.up(F.relu(self.norm2(self.conv2(h))))
        return h * self.gate(h) + self.residual(upsample2(x))


class SeparableUpsampleBlock(nn.Module):
    """`UpsampleBlock` of M2H-small: bilinear upsampling and a grouped 1x1 replace the transposed convolution."""

    GROUPS = 4

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SeparableConv(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = SeparableConv(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.refine = nn.Conv2d(out_channels, out_channels, 1, groups=self.GROUPS, bias=False)
        self.residual = nn.Conv2d(in_channels, out_channels, 1, groups=self.GROUPS, bias=False)
        self.gate = ChannelGate(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample a map by two: (N, Cin, H, W) to (N, Cout, 2H, 2W)."""
        h = F.relu(self.norm1(self.conv1(x)))
        h = F.relu(self.norm2(self.conv2(h)))
        h = self.refine(upsample2(h))
        return h * self.gate(h) + self.residual(upsample2(x))


class ASPPBranch(nn.Module):
    """Convolution at one dilation, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int, *, separable: bool) -> None:
        super().__init__()
        if dilation == 1:
            self.conv: nn.Module = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        else:
            self.conv = conv(in_channels, out_channels, 3, separable=separable, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the branch: (N, Cin, H, W) to (N, Cout, H, W)."""
        return F.relu(self.norm(self.conv(x)))


class PooledBranch(nn.Module):
    """Image-level branch of ASPP: 1x1 convolution of the channel means, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm = nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the image-level features: (N, Cin, H, W) to (N, Cout, 1, 1)."""
        return F.relu(self.norm(self.conv(global_mean(x))))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel branches of several dilations and one of the image's mean."""

    def __init__(self, channels: int, *, separable: bool) -> None:
        super().__init__()
        dilations = (1, 6) if separable else (1, 6, 12, 18)
        width = channels // 2 if separable else channels
        self.branches = nn.ModuleList(
            ASPPBranch(channels, width, dilation, separable=separable) for dilation in dilations
        )
        self.pooled = PooledBranch(channels, width)
        self.project = nn.Conv2d(width * (len(dilations) + 1), channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Combine the branches: (N, C, H, W) to (N, C, H, W)."""
        maps = [branch(x) for branch in self.branches]
        # Expanding equals the bilinear resize of one pixel to H x W.
        maps.append(self.pooled(x).expand_as(maps[0]))
        return F.relu(self.norm(self.project(torch.cat(maps, dim=1))))


class Refinement(nn.Module):
    """Residual refinement of M2H: x + relu(conv(relu(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refine a map: (N, C, H, W) to (N, C, H, W)."""
        return x + F.relu(self.conv2(F.relu(self.conv1(x))))


class SeparableRefinement(nn.Module):
    """Residual refinement of M2H-small: x + relu(separable_conv(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = SeparableConv(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Refine a map: (N, C, H, W) to (N, C, H, W)."""
        return x + F.relu(self.conv(x))


def _upsample_blocks(config: ModelConfig) -> tuple[nn.Module, nn.Module]:
    block = SeparableUpsampleBlock if config.separable else UpsampleBlock
    first, second = config.head_channels
    return block(config.channels, first), block(first, second)


class AttendedHead(nn.Module):
    """Head of depth and semantics: ASPP, two upsample blocks, refinement, spatial attention, last convolution."""

    def __init__(self, config: ModelConfig, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        width = config.head_channels[1]
        self.aspp = ASPP(config.channels, separable=config.separable)
        self.upsample1, self.upsample2 = _upsample_blocks(config)
        self.refine = SeparableRefinement(width) if config.separable else Refinement(width)
        self.spatial = nn.Conv2d(width, 1, 3, padding=1)
        self.final = nn.Conv2d(width, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the raw output (equation 5b): (N, C, H, W) to (N, out, 4H, 4W)."""
        x = self.refine(self.upsample2(self.upsample1(self.aspp(x))))
        return self.final(x * torch.sigmoid(self.spatial(x)))


class PlainHead(nn.Module):
    """Head of normals and edges: two upsample blocks and a 1x1 convolution."""

    def __init__(self, config: ModelConfig, out_channels: int) -> None:
        super().__init__()
        self.upsample1, self.upsample2 = _upsample_blocks(config)
        self.final = nn.Conv2d(config.head_channels[1], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the raw output (equation 5b): (N, C, H, W) to (N, out, 4H, 4W)."""
        return self.final(self.upsample2(self.upsample1(x)))


class DepthHead(AttendedHead):
    """Head of metric depth."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 1, 3)
        self.min_depth = config.min_depth

    def forward(self, x: Tensor) -> Tensor:
        """Predict depth in meters, at least `min_depth`: (N, C, H, W) to (N, 1, 4H, 4W)."""
        return F.relu(super().forward(x)) + self.min_depth


class SemanticsHead(AttendedHead):
    """Head of class logits: (N, C, H, W) to (N, num_classes, 4H, 4W)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, config.num_classes, 1)


class NormalsHead(PlainHead):
    """Head of surface normals."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Predict unit normals: (N, C, H, W) to (N, 3, 4H, 4W), length 1 along the channels."""
        return F.normalize(torch.tanh(super().forward(x)), dim=1)


class EdgesHead(PlainHead):
    """Head of edge logits: (N, C, H, W) to (N, 1, 4H, 4W)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, 1)
