"""Fixtures of the calibration tests: the built-in network, which knows rooms, as a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import make_once


@pytest.fixture(scope="session")
def trained_bundle(tmp_path_factory) -> Path:
    """Return m2h-tiny as a bundle for ONNX Runtime. Read-only."""
    pytest.importorskip("torch")
    from engines import build_bundle
    from export import export_onnx
    from m2h_deploy.model import load_checkpoint

    def make(path: Path) -> None:
        source = tmp_path_factory.mktemp("trained") / "model.onnx"
        export_onnx(load_checkpoint("m2h-tiny"), source, height=224, width=224)
        build_bundle(source, path)

    return make_once(tmp_path_factory, "m2h-tiny-224", make)


@pytest.fixture
def bundle(trained_bundle, tmp_path) -> Path:
    """Return a copy of the bundle, to calibrate."""
    return Path(shutil.copytree(trained_bundle, tmp_path / "bundle"))
