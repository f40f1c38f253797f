"""The deploy form: M2H rewritten by exact identities for one image size, block by block beside the reference."""

from __future__ import annotations

import copy

from torch import nn

from export.deploy_form.network import DeployM2H
from m2h_deploy.errors import M2HError
from m2h_deploy.model.network import M2H

__all__ = ["to_deploy"]


def to_deploy(model: M2H, height: int, width: int) -> nn.Module:
    """An equivalent network for images of `height` x `width`: (N, 3, H, W) to the four outputs in the order of TASKS.

    Same mathematics, other numbers of multiplications and memory passes: see each block's identities. Weights are
    transformed in float64 and come back in the model's own dtype; `model` is left as it is. The batch is free.
    Raises M2HError when the size is not positive.
    """
    if height < 1 or width < 1:
        raise M2HError(f"image size {height} x {width}: height and width must be at least 1")
    dtype = next(model.parameters()).dtype
    source = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    return DeployM2H(source, height, width).to(dtype).eval().requires_grad_(False)
