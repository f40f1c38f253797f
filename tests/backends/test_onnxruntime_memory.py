"""Test that ONNX Runtime's plans that hold memory are off, as the benchmark of the options assumes."""

from __future__ import annotations

import pytest

from benchmarks.engine_options import ONNXRUNTIME, OURS
from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.onnxruntime import open_session
from m2h_deploy.bundle.folder import load_bundle
from tests.backends.small_network import small_bundle


@pytest.mark.parametrize("name", list(ONNXRUNTIME[OURS]))
def test_the_session_has_the_options_that_the_benchmark_compares_with(name, tmp_path):
    session, provider = open_session(
        load_bundle(small_bundle(tmp_path / "bundle", "onnxruntime")), BackendOptions(threads=1)
    )
    assert provider == "cpu"
    assert getattr(session.get_session_options(), name) == ONNXRUNTIME[OURS][name]
