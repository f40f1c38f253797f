"""Networks whose every parameter has an effect: initial norms of 1 and LayerScale of 1e-5 would hide mistakes."""

from __future__ import annotations

import math

import torch

from m2h_deploy.model import M2H, build_model


def random_network(variant: str = "m2h-tiny", seed: int = 0, **options: object) -> M2H:
    """Return a network with reproducible, well-scaled values in every parameter and statistic, in eval mode."""
    model = build_model(variant, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_values(name, tensor, generator))
    return model.eval()


def _values(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    normal = torch.randn(tensor.shape, generator=generator)
    uniform = torch.rand(tensor.shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + uniform
    if name.endswith("gamma"):
        return 0.2 + 0.6 * uniform
    if name.endswith(("pos_embed", "cls_token", "mask_token")):
        return 0.5 * normal
    if tensor.dim() == 1:
        mean = 1.0 if name.endswith("weight") else 2.0 if name == "heads.depth.final.bias" else 0.0
        return mean + 0.1 * normal
    return normal * math.sqrt(1.5 / math.prod(tensor.shape[1:]))
