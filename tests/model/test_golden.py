"""Test that the reference gives the outputs of the published network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from m2h_deploy.model import load_checkpoint
from tests.golden import filler

CASES = [
    pytest.param("m2h_small", 224, 224, 29_042_096, marks=pytest.mark.slow),
    ("m2h_small", 256, 320, 29_042_096),
    pytest.param("m2h", 224, 224, 81_540_240, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Return filled-in state dicts, saved like the published checkpoints."""
    folder = tmp_path_factory.mktemp("published")
    paths = {}
    for network in ("m2h", "m2h_small"):
        paths[network] = folder / f"{network}.pt"
        torch.save({name: torch.from_numpy(value) for name, value in filler.weights(network).items()}, paths[network])
    return paths


@pytest.mark.parametrize(("network", "height", "width", "parameters"), CASES)
def test_agrees_with_the_published_network(published, network, height, width, parameters):
    """Check agreement up to float32 rounding, on average and on 999 of 1000 values; the rest may be unstable."""
    model = load_checkpoint(published[network])
    assert sum(p.numel() for p in model.parameters()) == parameters
    golden = np.load(filler.HERE / f"{network}_1x3x{height}x{width}_seed0.npz")
    record: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        outputs = model(torch.from_numpy(filler.image(1, height, width)), record)
    assert list(outputs) == ["depth", "semantics", "normals", "edges"]
    for task, output in outputs.items():
        assert output.shape[2:] == (height, width)
        error = np.abs(output[:, :, ::8, ::8].numpy() - golden[f"out_{task}"]) / golden[f"stat_{task}"][1]
        assert np.quantile(error, 0.999) < 1e-3, task
        assert error.mean() < 5e-5, task
    features = [name.removeprefix("feat_") for name in golden if name.startswith("feat_")]
    assert len(features) == 18
    for name in features:
        assert tuple(record[name].shape) == tuple(golden[f"shape_{name}"])
        expected = golden[f"feat_{name}"]
        error = np.abs(record[name][:, ::8, ::8, ::8].numpy() - expected) / expected.std()
        assert np.quantile(error, 0.999) < 1e-3, name
        assert error.mean() < 5e-5, name
