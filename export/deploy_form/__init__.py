"""The deploy form: M2H rewritten by exact identities for one image size, one module per block of the reference."""

from __future__ import annotations

import copy

from torch import nn

from export.deploy_form.network import DeployM2H
from m2h_deploy.errors import M2HError
from m2h_deploy.model.network import M2H

__all__ = ["to_deploy"]


def to_deploy(model: M2H, height: int, width: int) -> nn.Module:
    """Build an equivalent network for images of `height` x `width` pixels.

    It computes the same function with fewer multiplications and memory passes; each block documents the identities that
    it uses. Weights are transformed in float64 and converted back to the model's own dtype; `model` is not modified.

    Returns:
        A module from images (N, 3, H, W), any N, to a dict of the four outputs in the order of TASKS.

    Raises:
        M2HError: `height` or `width` is less than 1.
    """
    if height < 1 or width < 1:
        raise M2HError(f"image size {height} x {width}: height and width must be at least 1")
    dtype = next(model.parameters()).dtype
    source = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    return DeployM2H(source, height, width).to(dtype).eval().requires_grad_(False)
