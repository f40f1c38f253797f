"""Test that the rearranged forward pass equals the network's, outputs and gradients, up to rounding."""

from __future__ import annotations

import pytest
import torch

from m2h_deploy.model import TASKS, build_model
from m2h_deploy.training.forward import Window, forward
from m2h_deploy.training.speed import CPUAttention
from tests.networks import random_network

SMALL = {"channels": 16, "head_channels": (8, 12)}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("size", [(56, 42), (50, 61)], ids=["whole patches", "padded"])
def test_outputs_and_gradients_are_equal(size: tuple[int, int], training: bool) -> None:
    model = random_network().train(training)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (model, lambda image: forward(model, image)):
        model.zero_grad()
        outputs = function(image)
        torch.stack([(outputs[task] * torch.sin(outputs[task])).mean() for task in TASKS]).sum().backward()
        results.append((outputs, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (expected, expected_gradients), (found, gradients) = results
    assert list(found) == list(TASKS)
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], atol=1e-3, rtol=1e-3)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = expected_gradients[name].abs().max().item() + 1e-4
        assert (gradient - expected_gradients[name]).abs().max().item() < 0.02 * scale, name


def test_a_dense_decoder_is_run_as_it_is() -> None:
    model = build_model("m2h", backbone="vit_tiny", channels=8, head_channels=(8, 8)).eval()
    image = torch.randn(1, 3, 28, 28)
    with torch.no_grad():
        expected, found = model(image), forward(model, image)
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_a_window_shows_the_decoder_part_of_the_image() -> None:
    model = build_model("m2h-tiny", **SMALL).eval()
    with torch.no_grad():
        outputs = forward(model, torch.randn(1, 3, 84, 84), Window(1, 2, 3))
    assert {tuple(value.shape[2:]) for value in outputs.values()} == {(42, 42)}
    maps = torch.arange(36).view(1, 1, 6, 6)
    assert Window(1, 2, 3).of(maps)[0, 0].tolist() == [[8, 9, 10], [14, 15, 16], [20, 21, 22]]
    assert Window(1, 1, 1).of(maps, scale=2)[0, 0].tolist() == [[14, 15], [20, 21]]


@pytest.mark.parametrize("width", [2, 16, 64])
def test_cpu_attention_equals_pytorchs(width: int) -> None:
    q, k, v = (torch.randn(2, 3, 10, width, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    with CPUAttention():
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), q)[0], torch.autograd.grad(expected.square().sum(), q)[0]
    )
