"""Test the checks of a plan before it is given to a GPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from m2h_deploy.backends import BackendOptions, open_backend, tensorrt_api
from m2h_deploy.backends.buffers import ALIGNMENT, TensorSpec, plan_buffers
from m2h_deploy.backends.tensorrt_plan import (
    cache_path,
    check_capability,
    check_plugins,
    check_versions,
    device_index,
    targets_in_words,
    words_for,
)
from m2h_deploy.bundle.folder import Bundle, load_bundle, write_manifest
from m2h_deploy.errors import install_extra
from m2h_deploy.files.cache import read_checked, write_checked
from m2h_deploy.files.digests import file_sha256
from tests.commands import refused
from tests.engines.graphs import small_graph

SPECS = (
    TensorSpec("depth", (-1, 1, 10, 10), np.dtype(np.float32), False),
    TensorSpec("image", (-1, 3, 10, 10), np.dtype(np.float16), True),
    TensorSpec("labels", (-1, 10, 10), np.dtype(np.uint8), False),
)


@pytest.fixture
def manifest(tiny_bundle):
    return load_bundle(tiny_bundle).manifest


def with_engine(manifest, **changes):
    engine = manifest.engine.model_copy(update={"kind": "tensorrt-rtx", "version": "1.7.1.116"} | changes)
    return manifest.model_copy(update={"engine": engine})


@pytest.mark.parametrize("batch", [1, 3])
def test_tensors_share_one_allocation_aligned_with_inputs_first(batch):
    placements, size = plan_buffers(SPECS, batch)
    assert [placement.name for placement in placements] == ["image", "depth", "labels"]
    assert [placement.nbytes for placement in placements] == [600 * batch, 400 * batch, 100 * batch]
    assert all(placement.offset % ALIGNMENT == 0 for placement in placements)
    ends = [placement.offset + placement.nbytes for placement in placements]
    assert all(end <= after.offset for end, after in zip(ends, placements[1:], strict=False))
    assert ends[-1] <= size


def test_only_the_batch_may_be_dynamic():
    spec = TensorSpec("image", (1, 3, -1, 10), np.dtype(np.float32), True)
    assert "only the batch may be free" in refused(plan_buffers, [spec], 1)


@pytest.mark.parametrize(
    ("kind", "built", "installed", "options", "fits"),
    [
        ("tensorrt-rtx", "1.7.1.116", "1.7.1.116", {}, True),
        ("tensorrt-rtx", "1.7.1.116", "1.8.0.1", {}, False),
        ("tensorrt", "10.3.0", "10.13.2", {"version_compatible": True}, True),
        ("tensorrt", "10.13.2", "10.3.0", {"version_compatible": True}, False),
        ("tensorrt", "10.3.0", "11.0.0", {"version_compatible": True}, True),
        ("tensorrt", "8.6.1", "10.3.0", {"version_compatible": True}, True),
        ("tensorrt", "8.6.1", "11.0.0", {"version_compatible": True}, False),
        ("tensorrt", "11.1.0", "11.0.0", {"version_compatible": True}, False),
        ("tensorrt", "11.0.0", "10.16.1", {"version_compatible": True}, False),
        ("tensorrt", "10.3.0", "10.13.2", {}, False),
    ],
)
def test_plans_run_on_the_version_that_built_them(manifest, kind, built, installed, options, fits):
    changed = with_engine(manifest, kind=kind, version=built, options=options)
    if fits:
        check_versions(changed, installed, "bundle/")
        return
    said = refused(check_versions, changed, installed, "bundle/")
    assert "bundle/" in said
    assert built in said
    assert installed in said


def test_plans_run_on_the_gpus_they_name(manifest):
    portable, named = with_engine(manifest), with_engine(manifest, targets=("8.6", "8.9"))
    check_capability(portable, "12.0", "bundle/")
    check_capability(named, "8.9", "bundle/")
    assert "built for compute capability 8.6, 8.9 and this GPU has 8.7" in refused(
        check_capability, named, "8.7", "bundle/"
    )
    assert targets_in_words(portable) == "compute capability 8.0, 8.6, 8.9 or 12.x"
    assert targets_in_words(named) == "compute capability 8.6, 8.9"


def test_kernels_are_cached_per_user_plan_version_and_gpu(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = load_bundle(tiny_bundle)
    file = cache_path(bundle, "8.6", "1.7.1")
    assert file.parent == tmp_path / "m2h-deploy" / "tensorrt-rtx"
    assert file.parent.stat().st_mode & 0o077 == 0
    assert bundle.manifest.files[bundle.manifest.engine.file] in file.name
    assert len({file, cache_path(bundle, "8.9", "1.7.1"), cache_path(bundle, "8.6", "1.8.0")}) == 3
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_path(bundle, "8.6", "1.7.1") is None


def test_cached_kernels_modified_on_disk_are_not_used(tmp_path):
    assert write_checked(tmp_path / "kernels", b"compiled")
    assert read_checked(tmp_path / "kernels") == b"compiled"
    for damaged in (b"", b"short", bytes(32) + b"compiled", (tmp_path / "kernels").read_bytes() + b"x"):
        (tmp_path / "kernels").write_bytes(damaged)
        assert read_checked(tmp_path / "kernels") is None
    assert read_checked(tmp_path / "none") is None
    assert not write_checked(tmp_path / "no folder" / "kernels", b"compiled")


def test_the_version_of_a_tensorrt_prerelease_is_read(manifest):
    built = with_engine(manifest, kind="tensorrt", version="10.3.0", options={"version_compatible": True})
    check_versions(built, "10.14.0rc1", "bundle/")
    check_versions(built, "10.14rc1", "bundle/")
    assert "10.2.0rc5" in refused(check_versions, built, "10.2.0rc5", "bundle/")


class TestPlugins:
    """A bundle names the plug-in libraries of its plan, without containing them; the caller decides about loading."""

    @pytest.fixture
    def library(self, tmp_path):
        (tmp_path / "libwindows.so").write_bytes(b"code")
        return tmp_path / "libwindows.so"

    @pytest.fixture
    def bundle(self, tiny_bundle, manifest, library):
        wanted = [{"name": "libwindows.so", "sha256": file_sha256(library)}]
        return Bundle(tiny_bundle, with_engine(manifest, options={"plugins": wanted}))

    def test_a_missing_plugin_library_is_named(self, bundle):
        said = refused(check_plugins, bundle, ())
        assert "needs the plug-in libwindows.so" in said
        assert "Runtime.load(..., plugins=['libwindows.so'])" in said

    def test_the_plugin_library_of_the_build_is_accepted(self, bundle, library, tmp_path):
        assert check_plugins(bundle, (library,)) == (library,)
        elsewhere = shutil.copy(library, tmp_path / "renamed.so")
        assert check_plugins(bundle, (Path(elsewhere),)) == (Path(elsewhere),)

    def test_another_library_with_the_same_name_is_refused(self, bundle, library):
        library.write_bytes(b"other code")
        assert "is not the one it was built with" in refused(check_plugins, bundle, (library,))
        assert "no plug-in library at nowhere.so" in refused(check_plugins, bundle, (Path("nowhere.so"),))

    def test_a_plan_without_plugins_loads_none(self, tiny_bundle, manifest, library):
        assert check_plugins(Bundle(tiny_bundle, with_engine(manifest)), (library,)) == ()

    @pytest.mark.parametrize("plugins", ["x.so", ["x.so"], [{"name": 1, "sha256": ""}], {"name": "x"}])
    def test_an_invalid_plugin_list_is_refused(self, tiny_bundle, manifest, plugins):
        bundle = Bundle(tiny_bundle, with_engine(manifest, options={"plugins": plugins}))
        assert "engine.options.plugins" in refused(check_plugins, bundle, ())


@pytest.mark.parametrize(("device", "index"), [(None, 0), ("cuda", 0), ("1", 1), ("cuda:2", 2)])
def test_a_gpu_is_named_by_its_index(device, index):
    assert device_index(device) == index


def test_a_device_other_than_a_gpu_is_refused():
    assert "give a GPU as 0 or cuda:0" in refused(device_index, "cpu")


class TestOpening:
    """Open a bundle with a real plan on a machine without a GPU."""

    @pytest.fixture
    def bundle(self, tiny_bundle, tmp_path):
        rtx = pytest.importorskip("tensorrt_rtx")
        pytest.importorskip("cuda.bindings")
        from engines.tensorrt import build_tensorrt
        from m2h_deploy.backends.driver import missing_gpu

        if missing_gpu() is None:
            pytest.skip("this machine has a GPU")
        path = shutil.copytree(tiny_bundle, tmp_path / "bundle")
        onnx.save(small_graph(), tmp_path / "small.onnx")
        info = build_tensorrt(tmp_path / "small.onnx", path, flavor="tensorrt-rtx", precision="fp32")
        assert info.version == rtx.__version__
        manifest = load_bundle(tiny_bundle).manifest
        files = {file.name: file_sha256(file) for file in path.iterdir() if file.name != "manifest.json"}
        write_manifest(path, manifest.model_copy(update={"engine": info, "files": files}))
        return path

    def test_the_error_without_a_gpu_names_the_required_one_and_an_alternative(self, bundle, capfd):
        said = refused(open_backend, load_bundle(bundle), BackendOptions())
        assert "needs an NVIDIA GPU (compute capability 8.0, 8.6, 8.9 or 12.x), and none can be used here" in said
        assert "no NVIDIA driver is installed: libcuda.so.1 is missing" in said or "finds no GPU" in said
        assert "--engine onnxruntime" in said
        assert capfd.readouterr() == ("", ""), "the one line is the error's"

    def test_a_damaged_plan_is_detected_without_a_gpu(self, bundle):
        loaded = load_bundle(bundle)
        loaded.engine_file.write_bytes(b"no plan" * 1000)
        said = refused(open_backend, loaded, BackendOptions())
        assert "model.plan cannot be run: the file is damaged or not a plan" in said

    def test_a_plan_of_another_version_is_refused(self, bundle):
        loaded = load_bundle(bundle)
        engine = loaded.manifest.engine.model_copy(update={"version": "1.2.0.54"})
        write_manifest(bundle, loaded.manifest.model_copy(update={"engine": engine}))
        said = refused(open_backend, load_bundle(bundle), BackendOptions())
        assert "was built by TensorRT-RTX 1.2.0.54" in said
        assert "build it again" in said

    def test_diagnostic_flags_are_translated_to_words(self, bundle):
        import tensorrt_rtx

        members = tensorrt_rtx.EngineInvalidityDiagnostics.__members__
        both = int(members["UNSUPPORTED_CC"]) | int(members["OLD_CUDA_DRIVER"])
        assert words_for(tensorrt_rtx, both) == ["it was built for other GPUs", "the NVIDIA driver is too old for it"]
        assert words_for(tensorrt_rtx, 0) == []


@pytest.mark.parametrize("kind", ["tensorrt", "tensorrt-rtx"])
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(tiny_bundle, manifest, monkeypatch, kind):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(tensorrt_api, "_modules", {})
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", missing)
    bundle = load_bundle(tiny_bundle)
    bundle = type(bundle)(bundle.path, with_engine(manifest, kind=kind))
    assert refused(open_backend, bundle, BackendOptions()).count(install_extra(kind)) == 1
