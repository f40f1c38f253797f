"""Reproducible weights and images, from which the golden measurements were made."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
SEED = 0


def tensors(network: str) -> dict[str, tuple[int, ...]]:
    """Return the published tensor names and shapes of `m2h` or `m2h_small`."""
    lines = (HERE / f"{network}_tensors.txt").read_text().splitlines()
    pairs = (line.split() for line in lines)
    return {name: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for name, shape in pairs}


def weights(network: str, seed: int = SEED) -> dict[str, NDArray]:
    """Return a published state dict with filled-in values."""
    return {name: _fill(name, shape, seed) for name, shape in tensors(network).items()}


def _fill(name: str, shape: tuple[int, ...], seed: int) -> NDArray:
    """Fill a tensor by name: counters zero, variances and LayerScale uniform, others normal about a mean."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
    last = name.rsplit(".", 1)[-1]
    uniform = {"running_var": (0.5, 1.5), "gamma": (0.2, 0.8)}
    if last in uniform:
        return draw.uniform(*uniform[last], shape).astype(np.float32)
    return (_mean(name, shape) + _deviation(name, shape) * draw.standard_normal(shape)).astype(np.float32)


def _mean(name: str, shape: tuple[int, ...]) -> float:
    if len(shape) == 1 and name.endswith("weight"):
        return 1.0  # affine norms
    return 2.0 if name.endswith("final_conv.bias") else 0.0  # 2: keeps depth = relu(.) + min_depth above the minimum


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    if name.rsplit(".", 1)[-1] in ("cls_token", "pos_embed", "mask_token"):
        return 0.5
    if len(shape) == 1:
        spread = name.endswith(("weight", "running_mean", "final_conv.bias"))
        return 0.1 if spread else 0.05
    return float(np.sqrt(1.5 / int(np.prod(shape[1:]))))


def image(n: int, height: int, width: int) -> NDArray[np.float32]:
    """Return a smooth random normalized batch (n, 3, height, width): enlarged coarse noise plus fine noise."""
    draw = np.random.default_rng([SEED, height, width])
    coarse = draw.standard_normal((n, 3, height // 16 + 2, width // 16 + 2))
    y = np.linspace(0, coarse.shape[2] - 1.001, height)
    x = np.linspace(0, coarse.shape[3] - 1.001, width)
    top, left = y.astype(int), x.astype(int)
    down, right = (y - top)[:, None], x - left
    corners = {(i, j): coarse[:, :, top + i][:, :, :, left + j] for i in (0, 1) for j in (0, 1)}
    smooth = corners[0, 0] * (1 - down) * (1 - right) + corners[0, 1] * (1 - down) * right
    smooth = smooth + corners[1, 0] * down * (1 - right) + corners[1, 1] * down * right
    return (smooth + 0.1 * draw.standard_normal((n, 3, height, width))).astype(np.float32)
