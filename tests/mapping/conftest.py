"""Fixtures of the mapping tests: a bundle of a small network."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.conftest import make_once
from tests.engines.graphs import small_graph


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory) -> Path:
    """Build the small network, which predicts depth and 4 classes, into a bundle for ONNX Runtime. Read-only."""
    from engines import build_bundle

    def make(path: Path) -> None:
        source = tmp_path_factory.mktemp("small") / "small.onnx"
        onnx.save(small_graph(scale=0.3), source)
        build_bundle(source, path)

    return make_once(tmp_path_factory, "small", make)
