"""Test that float64 evaluation in strips equals the whole convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from export import float64


class Net(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, **options)


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "padding": 6, "dilation": 6, "bias": False},
        {"kernel_size": (5, 3), "padding": (2, 1), "groups": 4},
        {"kernel_size": 4, "stride": 4},
        {"kernel_size": (1, 7), "padding": (0, 3)},
    ],
)
def test_a_convolution_in_strips_gives_the_same(options, rows, monkeypatch):
    torch.manual_seed(0)
    net, image = Net(**options), torch.randn(2, 4, 37, 29)
    expected = net.double().conv(image.double())
    kernel = net.conv.kernel_size
    monkeypatch.setattr(float64, "UNFOLDED_BYTES", rows * 2 * 4 * kernel[0] * kernel[1] * expected.shape[3] * 8)
    calls = []
    convolve = float64.F.conv2d
    monkeypatch.setattr(float64.F, "conv2d", lambda *a: calls.append(a[0].shape[2]) or convolve(*a))
    found = float64.to_float64(net).conv(image.double())
    assert len(calls) == -(-expected.shape[2] // rows)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
