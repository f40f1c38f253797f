"""Typical exporter faults, planted on purpose: the export check must refuse each.

Each is planted in a copy of the network, or in the code that exports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2h_deploy.model import M2H
from m2h_deploy.model.backbone import center_pad
from m2h_deploy.model.layers import resize


@dataclass(frozen=True)
class Fault:
    """One fault. `height` and `width` are a size at which it changes the outputs."""

    name: str
    plant: Callable[[M2H, pytest.MonkeyPatch], object]
    height: int = 112
    width: int = 98


def _alternating_signs(model: M2H, patch: pytest.MonkeyPatch) -> None:
    model.heads["semantics"].final.weight[1::2] *= -1


def _swapped_channels(model: M2H, patch: pytest.MonkeyPatch) -> None:
    weight = model.msf["normals"].blocks[2].project.weight
    weight[[0, 1]] = weight[[1, 0]].clone()


def _dropped_bias(model: M2H, patch: pytest.MonkeyPatch) -> None:
    model.wmca.layers[1].norm1["depth"].bias.zero_()


def _rotated_window(model: M2H, patch: pytest.MonkeyPatch) -> None:
    """Rotate one window of one task: both forms look up the partition when they are constructed."""
    from export.deploy_form import wmca as deploy

    def rotated(partition: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
        def rotate(x: Tensor, window_size: int) -> Tensor:
            windows = partition(x, window_size)
            if windows.dtype == torch.float64:  # the deploy form's mask of real positions
                return windows
            return torch.cat((windows[:3], windows[3:4].roll(1, 1), windows[4:]))

        return rotate

    layer = model.wmca.layers[1]
    layer.partition = rotated(layer.partition)
    patch.setattr(deploy, "window_partition", rotated(deploy.window_partition))


def _other_corners(model: M2H, patch: pytest.MonkeyPatch) -> None:
    """Give the last upsampling of one MSF path the sampling positions of `align_corners=False`."""
    from export.deploy_form import msf as deploy

    def upsample(x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    block = model.msf["depth"].blocks[3]

    def forward(x: Tensor, skip: Tensor) -> Tensor:
        unit = block.residual if block.skip_residual is None else block.skip_residual
        x = x + unit(resize(skip, (x.shape[2], x.shape[3])))
        return block.project(upsample(block.residual(x)))

    block.forward = forward

    class Block(deploy.DeployFusionBlock):
        made = 0

        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)
            Block.made += 1
            self.wrong = Block.made == 4

        def forward(self, *maps: Tensor) -> Tensor:
            if not self.wrong:
                return super().forward(*maps)
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(deploy, "upsample", upsample)
                return super().forward(*maps)

    patch.setattr(deploy, "DeployFusionBlock", Block)


def _moved_padding(model: M2H, patch: pytest.MonkeyPatch) -> None:
    """Shift the image by one pixel to the right within its padding."""

    def moved(image: Tensor, multiple: int) -> Tensor:
        padded = center_pad(image, multiple)
        return F.pad(padded, (1, -1, 0, 0))

    patch.setattr("export.static_form.center_pad", moved)
    patch.setattr("export.deploy_form.backbone.center_pad", moved)


def _no_offset(model: M2H, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("m2h_deploy.model.backbone._POSITION_OFFSET", 1e-9)


def _scaled_residual(model: M2H, patch: pytest.MonkeyPatch) -> None:
    model.backbone.blocks[3].ls2.gamma *= 1.01


def _scaled_depth(model: M2H, patch: pytest.MonkeyPatch) -> None:
    final = model.heads["depth"].final
    final.weight *= 1.01
    final.bias *= 1.01


def _exchanged_axes(model: M2H, patch: pytest.MonkeyPatch) -> None:
    for tensor in model.heads["normals"].final.parameters():
        tensor[[0, 1]] = tensor[[1, 0]].clone()


FAULTS = (
    Fault("a head's weights with alternating signs", _alternating_signs),
    Fault("two channels of an MSF block swapped", _swapped_channels),
    Fault("the bias of one WMCA norm dropped", _dropped_bias),
    Fault("the tokens of one window rotated by one", _rotated_window),
    Fault("align_corners flipped in one resize", _other_corners),
    Fault("central padding moved by one pixel", _moved_padding, height=104, width=90),
    Fault("position embeddings resized without the offset", _no_offset),
    Fault("one residual scaled by 1.01", _scaled_residual),
    Fault("depth off by 1 %", _scaled_depth),
    Fault("x and y of the normals exchanged", _exchanged_axes),
)


def round_to_half(model: M2H, block: str) -> None:
    """Round the weights of one block to FP16."""
    for tensor in model.get_submodule(block).parameters():
        tensor.copy_(tensor.half())
