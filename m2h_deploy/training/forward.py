"""The network's forward pass, rearranged for training: the same function of the same weights with fewer large maps.

In training every intermediate map is kept for the backward pass, so the maps at full size of M2H-small's decoder cost
more than all its products. The rearrangements are exact in real arithmetic: a 1x1 convolution commutes with bilinear
resizing, whose weights add up to 1, and the mean of a resized map is a weighted mean of the map itself.
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
    """`model(image)`, cheaper to train: equal up to rounding, outputs in the same order and of the same shapes.

    With `window` the decoder sees, and the outputs cover, only that part of the image. Networks with a dense decoder
    (M2H itself) are run as they are.
    """
    stages = model.backbone(image)
    if window is None:
        return decode(model, stages, (image.shape[2], image.shape[3]))
    side = window.patches * model.config.backbone.patch_size
    return decode(model, [(window.of(patches), token) for patches, token in stages], (side, side))


@dataclass(frozen=True)
class Window:
    """A square of `patches` x `patches` patches, its first one in row `top` and column `left` of the patch grid."""

    top: int
    left: int
    patches: int

    def of(self, maps: Tensor, scale: int = 1) -> Tensor:
        """The window's part of maps (..., H, W) that have `scale` rows and columns a patch."""
        end = scale * (self.top + self.patches), scale * (self.left + self.patches)
        return maps[..., scale * self.top : end[0], scale * self.left : end[1]]


def decode(model: M2H, stages: list[tuple[Tensor, Tensor]], size: tuple[int, int]) -> dict[str, Tensor]:
    """Everything behind the backbone: four stages to the four outputs at `size`."""
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
        # In float32: bfloat16's unit vectors are up to half a degree off.
        x = F.normalize(torch.tanh(x.float()), dim=1)
    return resize(x, size)


def _aspp(head: AttendedHead, x: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return head.aspp(x)
    # In bfloat16 the weight gradient of the dilated depthwise convolution was seen to change from call to call
    # (oneDNN, PyTorch 2.13): training would not be reproducible.
    with torch.autocast("cpu", enabled=False):
        return head.aspp(x.float())


def _before_upsampling(block: nn.Module, x: Tensor) -> Tensor:
    """z with block(x) = upsample2(z), at the size of x."""
    assert isinstance(block, SeparableUpsampleBlock)
    h = F.relu(block.norm1(block.conv1(x)))
    h = F.relu(block.norm2(block.conv2(h)))
    rows, columns = (_upsampled_mean_weights(n).to(h) for n in h.shape[2:])
    mean = ((h * columns).sum(3) * rows).sum(2)[..., None, None]
    # Not through the module: quantizers round maps, never means, as in an INT8 engine.
    gate = block.gate(F.conv2d(mean, block.refine.weight, groups=block.refine.groups))
    return block.refine(h) * gate + block.residual(x)


@lru_cache(maxsize=64)
def _upsampled_mean_weights(length: int) -> Tensor:
    """Weight of each of `length` samples in the mean of their 2x upsampling with aligned corners: (length,), sum 1."""
    unit = torch.eye(length)[:, None]
    return F.interpolate(unit, size=2 * length, mode="linear", align_corners=True).mean(dim=2)[:, 0]
