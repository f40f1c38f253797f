"""Forward pass rearranged for training: the same function of the same weights, with fewer large intermediate maps.

Training keeps every intermediate map for the backward pass. The full-size maps of M2H-small's decoder therefore cost
more than all its matrix products. The rearrangements are exact in real arithmetic: a 1x1 convolution commutes with
bilinear resizing, whose weights add up to 1, and the mean of a resized map is a weighted mean of the map itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model import M2H, TASKS
from m2h_deploy.model.heads import (
    AttendedHead,
    DepthHead,
    NormalsHead,
    PlainHead,
    SemanticsHead,
    SeparableUpsampleBlock,
)
from m2h_deploy.model.layers import resize, upsample2
from m2h_deploy.model.msf import MSF, FusionBlock


def forward(model: M2H, image: Tensor, window: Window | None = None) -> dict[str, Tensor]:
    """Run `model(image)` at a lower training cost. The outputs are equal up to rounding.

    Networks with a dense decoder (M2H itself) are not rearranged.

    Args:
        model: the network.
        image: (N, 3, H, W), normalized.
        window: if given, the decoder sees, and the outputs cover, only this part of the image.

    Returns:
        Outputs by task, in the order and with the shapes of `M2H.forward`, at the size of the image or the window.
    """
    stages = model.backbone(image)
    if window is None:
        return decode(model, stages, (image.shape[2], image.shape[3]))
    side = window.patches * model.config.backbone.patch_size
    return decode(model, [(window.of(patches), token) for patches, token in stages], (side, side))


@dataclass(frozen=True)
class Window:
    """Square of `patches` x `patches` patches that begins at row `top` and column `left` of the patch grid."""

    top: int
    left: int
    patches: int

    def of(self, maps: Tensor, scale: int = 1) -> Tensor:
        """Crop maps (..., H, W) that have `scale` rows and columns per patch."""
        end = scale * (self.top + self.patches), scale * (self.left + self.patches)
        return maps[..., scale * self.top : end[0], scale * self.left : end[1]]


def decode(model: M2H, stages: list[tuple[Tensor, Tensor]], size: tuple[int, int]) -> dict[str, Tensor]:
    """Run everything after the backbone.

    Args:
        model: the network.
        stages: patch map (N, E, h, w) and class token (N, E) of each of the four stages.
        size: (H, W) of the outputs, pixels.

    Returns:
        Outputs (N, C, H, W) by task, in the order of TASKS.
    """
    maps = model.mstr(stages)
    fuse, head = (_fuse, _head) if model.config.separable else (_plain_fuse, _plain_head)
    features = {task: fuse(model.msf[task], maps) for task in TASKS}
    attended = features if model.wmca is None else model.wmca(features)
    fused = model.context(attended, features, stages[-1])
    return {task: head(model.heads[task], fused[task], size) for task in TASKS}


def _plain_fuse(msf: nn.Module, maps: list[Tensor]) -> Tensor:
    return msf(maps)


def _plain_head(head: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    return resize(head(x), size)


def _fuse(msf: nn.Module, maps: list[Tensor]) -> Tensor:
    assert isinstance(msf, MSF)
    x: Tensor | None = None
    for block, skip in zip(msf.blocks, reversed(maps), strict=True):
        x = _fusion_block(block, x, skip)
    assert x is not None
    return F.relu(msf.project(x))


def _fusion_block(block: nn.Module, x: Tensor | None, skip: Tensor) -> Tensor:
    assert isinstance(block, FusionBlock)
    x = skip if x is None else x + block.residual(resize(skip, (x.shape[2], x.shape[3])))
    return upsample2(block.project(block.residual(x)))


def _head(head: nn.Module, x: Tensor, size: tuple[int, int]) -> Tensor:
    if isinstance(head, AttendedHead):
        x = upsample2(_before_upsampling(head.upsample1, _aspp(head, x)))
        x = head.refine(upsample2(_before_upsampling(head.upsample2, x)))
        x = x * torch.sigmoid(head.spatial(x))
        if isinstance(head, SemanticsHead):
            return head.final(resize(x, size))
        assert isinstance(head, DepthHead)
        return resize(F.relu(head.final(x)) + head.min_depth, size)
    assert isinstance(head, PlainHead)
    x = upsample2(_before_upsampling(head.upsample1, x))
    x = upsample2(head.final(_before_upsampling(head.upsample2, x)))
    if isinstance(head, NormalsHead):
        # In float32, because unit vectors in bfloat16 are up to half a degree off.
        x = F.normalize(torch.tanh(x.float()), dim=1)
    return resize(x, size)


def _aspp(head: AttendedHead, x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return head.aspp(x)
    # In float32, because in bfloat16 the weight gradient of the dilated depthwise convolution varies between calls
    # (oneDNN, PyTorch 2.13), and training would not be reproducible.
    with torch.autocast("cpu", enabled=False):
        return head.aspp(x.float())


def _before_upsampling(block: nn.Module, x: Tensor) -> Tensor:
    """Compute z with block(x) = upsample2(z), at the size of x."""
    assert isinstance(block, SeparableUpsampleBlock)
    h = F.relu(block.norm1(block.conv1(x)))
    h = F.relu(block.norm2(block.conv2(h)))
    rows, columns = (_upsampled_mean_weights(n).to(h) for n in h.shape[2:])
    mean = ((h * columns).sum(3) * rows).sum(2)[..., None, None]
    # The module is bypassed, because its quantizer must not round means: an INT8 engine rounds only maps.
    gate = block.gate(F.conv2d(mean, block.refine.weight, groups=block.refine.groups))
    return block.refine(h) * gate + block.residual(x)


@lru_cache(maxsize=64)
def _upsampled_mean_weights(length: int) -> Tensor:
    """Compute each sample's weight in the mean of the 2x upsampling with aligned corners: (length,), sum 1."""
    unit = torch.eye(length)[:, None]
    return F.interpolate(unit, size=2 * length, mode="linear", align_corners=True).mean(dim=2)[:, 0]
