"""AdamW as in the paper, and Muon for training from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m2h_deploy.errors import M2HError
from m2h_deploy.training.config import StageConfig

#: Parts of the names of first and last layers, which work on pixels and classes. Muon is for the layers between.
_OUTER = ("backbone.patch_embed.", ".final.", "decoder.out.")
#: Smallest side of a parameter that is treated as a matrix; depthwise kernels and gates are smaller.
_LEAST_SIDE = 8


class Optimizer:
    """AdamW over the trained parameters of a network, or Muon over its inner matrices and AdamW over the rest.

    Muon (Jordan et al. 2024, torch.optim.Muon) replaces the momentum of a matrix by the nearest orthogonal matrix. For
    convolutions the matrix is (output channels, all other dimensions). Its steps are scaled to AdamW's size, so that
    both use one learning rate.
    """

    def __init__(self, network: nn.Module, config: StageConfig) -> None:
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self._matrices: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._parts: list[torch.optim.Optimizer] = []
        rest = self.parameters
        if config.optimizer == "muon":
            if not hasattr(torch.optim, "Muon"):
                raise M2HError(f"PyTorch {torch.__version__} has no Muon: install 2.9 or later, or use adamw")
            chosen = {id(p) for name, p in network.named_parameters() if _is_inner_matrix(name, p)}
            self._matrices = [(p, nn.Parameter(_as_matrix(p))) for p in self.parameters if id(p) in chosen]
            rest = [p for p in self.parameters if id(p) not in chosen]
        if self._matrices:
            matrices = [matrix for _, matrix in self._matrices]
            rate, decay = config.learning_rate, config.weight_decay
            self._parts.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
        self._parts.append(torch.optim.AdamW(_groups(rest, config.weight_decay), lr=config.learning_rate))

    def step(self, learning_rate: float) -> None:
        """Update the parameters with their gradients, at `learning_rate`."""
        for parameter, matrix in self._matrices:
            matrix.grad = None if parameter.grad is None else _as_matrix(parameter.grad, like=parameter)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        """Discard the gradients of the trained parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Collect the state of each part: "0" is Muon if it is used; the last one is AdamW."""
        return {str(i): part.state_dict() for i, part in enumerate(self._parts)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned for the same network and stage."""
        for i, part in enumerate(self._parts):
            part.load_state_dict(saved[str(i)])


def _is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return (
        parameter.requires_grad
        and parameter.ndim in (2, 4)
        and min(parameter.shape[:2]) >= _LEAST_SIDE
        and not any(outer in name for outer in _OUTER)
    )


def _as_matrix(values: Tensor, like: Tensor | None = None) -> Tensor:
    """Reshape to (outputs, inputs): a parameter as a view, a gradient with its entries in the parameter's order."""
    values, order = values.detach(), values if like is None else like
    if values.ndim == 4 and not order.is_contiguous():
        values = values.permute(0, 2, 3, 1)
    return values.flatten(1) if like is not None else values.view(len(values), -1)


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters by weight decay: matrices and kernels have it; norms, biases and scales do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
