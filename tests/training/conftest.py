"""Return a training config small enough for a test: a few rooms of 42 x 42 pixels, three short stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("kornia", reason="training needs kornia (the `train` extra)")

from m2h_deploy.training import TrainConfig
from m2h_deploy.training.config import DataConfig, StageConfig

SMALL = TrainConfig(
    variant="m2h-tiny",
    seed=5,
    save_steps=2,
    layer_scale=1.0,
    model={"channels": 16, "head_channels": (8, 8)},
    data=DataConfig(count=8, seed=1, height=42, width=42),
    validation=DataConfig(count=2, seed=2, height=42, width=42),
    stages=(
        StageConfig("warm start", epochs=1, batch_size=4, decoder="patch", learning_rate=1e-3),
        StageConfig("initial", epochs=2, batch_size=4, average=0.9),
        StageConfig(
            "fine-tuning", epochs=2, batch_size=4, crop=2, consistency=0.1, alpha=0.75, beta=1.0, focal=(0.81, 1.08)
        ),
    ),
)


@pytest.fixture(scope="session")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the runs of all tests cache their frames."""
    return tmp_path_factory.mktemp("frames")


@pytest.fixture
def small() -> TrainConfig:
    return replace(SMALL)
