"""What tests share: real data where it lies beside the repository, and one small network taken the whole way."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# A shell starts background jobs with SIGINT ignored, which every program that the tests interrupt would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository; tests that need it are skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny_model():
    """m2h-tiny with random weights in every parameter."""
    from tests.networks import random_network

    return random_network()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model, tmp_path_factory) -> Path:
    from m2h_deploy.model import save_checkpoint

    return save_checkpoint(tiny_model, tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_onnx(tiny_model, tmp_path_factory) -> Path:
    """`tiny_model` exported at 112 x 140."""
    from export import export_onnx

    return export_onnx(tiny_model, tmp_path_factory.mktemp("onnx") / "tiny.onnx", height=112, width=140)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_onnx, tmp_path_factory) -> Path:
    """`tiny_onnx` as a bundle for ONNX Runtime. Read only: copy it before changing it."""
    from engines import build_bundle

    return build_bundle(tiny_onnx, tmp_path_factory.mktemp("bundle") / "tiny").path
