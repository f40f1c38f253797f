"""Test the optimizers: PyTorch's AdamW, and Muon on matrices and on kernels reshaped to matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from m2h_deploy.training.config import StageConfig
from m2h_deploy.training.optimizers import Optimizer

RATE = 0.01


def stage(**options) -> StageConfig:
    return StageConfig(name="s", epochs=1, weight_decay=0.1, **options)


def with_gradients(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return network


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3, groups=16))


def test_adamw_decays_kernels_and_leaves_biases_and_norms():
    ours, theirs = with_gradients(network()), with_gradients(network())
    Optimizer(ours, stage()).step(RATE)
    kernels = [p for p in theirs.parameters() if p.ndim > 1]
    levels = [p for p in theirs.parameters() if p.ndim <= 1]
    torch.optim.AdamW([{"params": kernels, "weight_decay": 0.1}, {"params": levels, "weight_decay": 0}], lr=RATE).step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_steps_a_kernel_as_the_matrix_of_outputs_and_inputs(layout):
    ours = with_gradients(network().to(memory_format=layout))
    matrix = nn.Parameter(ours[0].weight.detach().clone().permute(0, 2, 3, 1).reshape(16, -1))
    matrix.grad = ours[0].weight.grad.permute(0, 2, 3, 1).reshape(16, -1)
    torch.optim.Muon([matrix], lr=RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw").step()
    Optimizer(ours, stage(optimizer="muon")).step(RATE)
    stepped = ours[0].weight.detach().permute(0, 2, 3, 1).reshape(16, -1)
    # Muon's iteration runs in bfloat16, where another order of columns rounds differently.
    assert (stepped - matrix.detach()).abs().max() < 0.02 * RATE


def test_muon_leaves_depthwise_kernels_norms_and_outer_layers_to_adamw():
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Linear(8, 8), nn.ModuleDict({"final": nn.Linear(8, 8)})
            self.depthwise = nn.Conv2d(16, 16, 3, groups=16)

    muon, adamw = with_gradients(Outer()), with_gradients(Outer())
    Optimizer(muon, stage(optimizer="muon")).step(RATE)
    Optimizer(adamw, stage()).step(RATE)
    changed = {
        n for (n, a), b in zip(muon.named_parameters(), adamw.parameters(), strict=True) if not torch.equal(a, b)
    }
    assert changed == {"inner.weight"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_restored_optimizer_continues_bit_for_bit(optimizer):
    whole, first = with_gradients(network()), with_gradients(network())
    steps, before = Optimizer(whole, stage(optimizer=optimizer)), Optimizer(first, stage(optimizer=optimizer))
    steps.step(RATE)
    before.step(RATE)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    second = with_gradients(network())
    second.load_state_dict(saved)
    after = Optimizer(second, stage(optimizer=optimizer))
    after.load_state_dict(before.state_dict())
    steps.step(RATE / 2)
    after.step(RATE / 2)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_are_not_touched():
    frozen = with_gradients(network())
    frozen[0].weight.requires_grad_(False)
    before = frozen[0].weight.clone()
    Optimizer(frozen, stage(optimizer="muon")).step(RATE)
    assert torch.equal(frozen[0].weight, before)
