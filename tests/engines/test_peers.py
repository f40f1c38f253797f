"""Test that the peers of a bundle give the same outputs as the bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.peers import TorchBackend, open_peers, plain_bundle, write_plain
from m2h_deploy import M2HError, Runtime
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.bundle.self_test import check_self_test, pattern
from m2h_deploy.model import load_checkpoint


@pytest.fixture(scope="module")
def runtime(tiny_bundle):
    with Runtime.load(tiny_bundle, self_test=False, threads=1) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def network(tiny_checkpoint):
    return load_checkpoint(tiny_checkpoint).eval()


@pytest.fixture(scope="module")
def plain(runtime, network, tmp_path_factory):
    """Export the network once for all kinds of engine."""
    spec = runtime.manifest.input
    return write_plain(network, tmp_path_factory.mktemp("plain") / "plain.onnx", spec.height, spec.width)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnxruntime", "openvino"])
def test_a_plain_export_passes_the_bundles_self_test_on_its_kind_of_engine(
    runtime, network, plain, kind, tmp_path, monkeypatch
):
    pytest.importorskip(kind)
    monkeypatch.setattr("engines.peers.write_plain", lambda model, path, *sides: Path(shutil.copy(plain, path)))
    engine = runtime.manifest.engine.model_copy(update={"kind": kind, "options": {}})
    bundle = type(runtime.bundle)(runtime.bundle.path, runtime.manifest.model_copy(update={"engine": engine}))
    plain = plain_bundle(network, bundle, tmp_path, threads=1)
    assert plain.manifest.engine.kind == kind
    backend = open_backend(plain, BackendOptions(threads=1))
    check_self_test(runtime.manifest.self_test, backend.run(pattern(runtime.manifest.input)))
    backend.close()


def test_pytorch_passes_the_bundles_self_test(runtime, network):
    outputs = TorchBackend(network, "cpu", "eager").run(pattern(runtime.manifest.input))
    check_self_test(runtime.manifest.self_test, outputs)


def test_peers_run_like_the_bundle_and_unavailable_ones_are_left_out(runtime, tiny_checkpoint, monkeypatch):
    def no_compiler(network):
        def run(image):
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr("engines.peers.plain_bundle", lambda *arguments: (_ for _ in ()).throw(M2HError("no engine")))
    warnings = []
    with open_peers(str(tiny_checkpoint), threads=1, warn=warnings.append) as make:
        peers = make(runtime)
        assert [peer.name for peer in peers] == ["PyTorch eager"]
        assert set(peers[0].run(np.zeros((96, 128, 3), np.uint8))) == {"preprocess", "inference", "postprocess"}
    assert warnings == ["torch.compile is left out: no C++ compiler", "the plain export is left out: no engine"]
