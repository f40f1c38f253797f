"""Fixtures that damage real bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.files.digests import file_sha256

Damage = Callable[[str], Path]


@pytest.fixture(scope="session")
def damaged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """Copy the bundle, change one tensor, and update the manifest to match."""

    def damage(tensor: str) -> Path:
        bundle = tmp_path_factory.mktemp("damaged") / "bundle"
        shutil.copytree(tiny_bundle, bundle)
        manifest = load_bundle(bundle).manifest
        file = bundle / manifest.engine.file
        graph = onnx.load(file)
        target = next(t for t in graph.graph.initializer if t.name == tensor)
        values = numpy_helper.to_array(target)
        noise = np.random.default_rng(0).standard_normal(values.shape) * (2 * np.abs(values).max())
        target.CopyFrom(numpy_helper.from_array(noise.astype(values.dtype), tensor))
        onnx.save(graph, file)
        files = {**manifest.files, file.name: file_sha256(file)}
        write_manifest(bundle, manifest.model_copy(update={"files": files}))
        return bundle

    return damage


@pytest.fixture(scope="session")
def bad_head(damaged: Damage) -> Path:
    return damaged("heads.semantics.end.final.bias")


@pytest.fixture(scope="session")
def bad_wmca(damaged: Damage) -> Path:
    return damaged("wmca.exchange.layers.1.ffn2.bias")


@pytest.fixture(scope="session")
def no_edges(tiny_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle whose engine has no edges output, as from an export without that task."""
    from engines import build_bundle

    folder = tmp_path_factory.mktemp("no_edges")
    graph = onnx.load(tiny_onnx)
    del graph.graph.output[3]
    for entry in graph.metadata_props:
        if entry.key == "m2h.tasks":
            entry.value = "depth,semantics,normals"
    onnx.save(graph, folder / "model.onnx")
    return build_bundle(folder / "model.onnx", folder / "bundle").path
