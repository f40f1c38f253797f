"""Test that the registries hold everything that the other code needs to know about an engine kind."""

from __future__ import annotations

import ast
import dataclasses

import pytest

from engines.registry import ENGINES
from m2h_deploy.backends import KINDS, engine_kind
from m2h_deploy.backends.registry import CppEngine, TritonBackend
from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.errors import BundleError, M2HError
from m2h_deploy.packaging.cpp import package_cpp
from m2h_deploy.packaging.triton import RepositoryOptions, config_text, native_backend
from tests.commands import ROOT
from tests.manifests import as_sensor_bundle


def test_every_kind_can_be_built_and_opened():
    assert list(KINDS) == list(ENGINES)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_functions_of_a_kind_exist(kind):
    for role in (kind.open, kind.profile):
        module, _, name = role.partition(":")
        tree = ast.parse((ROOT / "m2h_deploy/backends" / f"{module}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_packaging_profiling_and_serving_hard_code_no_engine_kind():
    """No string constant is an engine kind, or a package that provides one."""
    names = {*KINDS, *(name for kind in KINDS.values() for name in (kind.module, *kind.distributions))}
    for folder in ("bundle", "cluster", "packaging", "profiling", "runtime", "serving", "stream"):
        for path in (ROOT / "m2h_deploy" / folder).rglob("*.py"):
            constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not constants & names, path


@pytest.fixture
def new_kind(tiny_bundle, tmp_path, monkeypatch):
    """Return a raw-pixel bundle of an engine kind known only to the registry, and a function to change its entry."""

    def describe(**fields: object) -> None:
        entry = dataclasses.replace(KINDS["onnxruntime"], name="new", **fields)
        monkeypatch.setitem(KINDS, "new", entry)

    describe(extra="new", triton=None, cpp=None)
    return load_bundle(as_sensor_bundle(tiny_bundle, tmp_path / "bundle", "new")), describe


def test_an_entry_decides_how_triton_serves_a_kind(new_kind):
    bundle, describe = new_kind
    assert native_backend(bundle.manifest) is None
    assert 'backend: "python"' in config_text(bundle, RepositoryOptions())
    describe(triton=TritonBackend("new", "model.new"), needs_gpu=True)
    text = config_text(bundle, RepositoryOptions())
    assert 'backend: "new"' in text
    assert "kind: KIND_GPU" in text


def test_an_entry_decides_whether_libm2h_runs_a_kind(new_kind, tmp_path):
    bundle, describe = new_kind
    with pytest.raises(M2HError, match="libm2h does not run engines of kind new: build one of onnxruntime, openvino"):
        package_cpp(bundle.path, tmp_path / "robot")
    describe(cpp=CppEngine("the new engine: `-DNEW_ROOT=...`", cmake="3.20"))
    text = (package_cpp(bundle.path, tmp_path / "robot") / "README.md").read_text()
    assert "Needs CMake 3.20," in text
    assert "the new engine: `-DNEW_ROOT=...`." in text


def test_an_unknown_kind_gives_a_one_line_error(new_kind, monkeypatch):
    monkeypatch.delitem(KINDS, "new")
    with pytest.raises(BundleError, match="unknown engine kind 'new': known are onnxruntime, openvino"):
        engine_kind(new_kind[0])
