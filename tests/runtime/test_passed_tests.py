"""Test that a passed self-test is remembered, and repeated as soon as anything that it depends on changes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import openvino as ov
import pytest

from m2h_deploy import CheckFailed, M2HError, Runtime
from m2h_deploy.backends import BackendOptions
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.bundle.manifest import EngineInfo
from m2h_deploy.bundle.self_test import make_self_test, pattern
from m2h_deploy.files.digests import file_sha256
from m2h_deploy.runtime.passed_tests import PassedTest
from tests.backends.small_network import small_bundle
from tests.fake_engine import FakeEngine


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "m2h-deploy" / "self-tests"


@pytest.fixture
def tested(monkeypatch):
    """Paths of the bundles whose self-test was run."""
    runs: list[Path] = []
    run = Runtime.self_test

    def counted(runtime):
        runs.append(runtime.bundle.path)
        run(runtime)

    monkeypatch.setattr(Runtime, "self_test", counted)
    return runs


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a bundle of a small network for ONNX Runtime, with a self-test."""
    path = small_bundle(tmp_path_factory.mktemp("small") / "onnxruntime", "onnxruntime")
    with Runtime.load(path, threads=1) as runtime:
        outputs = runtime.backend.run(pattern(runtime.manifest.input))
        write_manifest(path, runtime.manifest.model_copy(update={"self_test": make_self_test(outputs)}))
    return path


@pytest.fixture(scope="module")
def small_openvino(small, tmp_path_factory):
    """Return the same network as an OpenVINO IR."""
    path = tmp_path_factory.mktemp("small") / "openvino"
    path.mkdir()
    ov.save_model(ov.Core().read_model(small / "model.onnx"), path / "model.xml", compress_to_fp16=False)
    manifest = load_bundle(small).manifest
    engine = EngineInfo(kind="openvino", version="2026.4.1", precision="fp32", file="model.xml")
    files = {name: file_sha256(path / name) for name in ("model.xml", "model.bin")}
    write_manifest(path, manifest.model_copy(update={"engine": engine, "files": files}))
    return path


def load(path, **options):
    Runtime.load(path, **{"threads": 1, **options}).close()


@pytest.fixture(params=["onnxruntime", "openvino"])
def bundle(request):
    return request.getfixturevalue("small" if request.param == "onnxruntime" else "small_openvino")


def test_a_passed_test_is_not_repeated_unless_asked(bundle, cache, tested):
    load(bundle)
    load(bundle)
    assert len(tested) == 1
    load(bundle, self_test=True)
    assert len(tested) == 2
    load(bundle, self_test=False)
    assert len(tested) == 2
    assert len(list(cache.iterdir())) == 1


def test_a_test_that_was_not_run_is_not_remembered(small, cache, tested):
    load(small, self_test=False)
    assert not cache.exists()
    load(small)
    assert len(tested) == 1


def test_other_threads_or_variables_run_it_again(small, cache, tested, monkeypatch):
    load(small)
    load(small, threads=2)
    monkeypatch.setenv("ORT_SOMETHING", "1")
    load(small)
    assert len(tested) == 3


def test_another_manifest_runs_it_again(small, cache, tested, tmp_path):
    load(small)
    copy = shutil.copytree(small, tmp_path / "copy")
    load(copy)
    assert len(tested) == 1, "the same bundle at another place"
    manifest = json.loads((copy / "manifest.json").read_text())
    output = manifest["self_test"]["outputs"]["depth"]
    output["values"] = [value + 100 for value in output["values"]]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):
        with pytest.raises(CheckFailed, match="self-test failed"):
            load(copy)
    assert len(tested) == 3, "a failed test is not remembered"


@pytest.mark.parametrize("damage", [b"", b"passed", os.urandom(200)], ids=["empty", "text", "random"])
def test_a_damaged_record_runs_it_again(small, cache, tested, damage):
    load(small)
    (record,) = cache.iterdir()
    content = record.read_bytes()
    record.write_bytes(damage)
    load(small)
    assert len(tested) == 2
    assert record.read_bytes() == content
    load(small)
    assert len(tested) == 2


def test_the_record_of_another_test_does_not_count(small, cache, tested):
    load(small)
    load(small, threads=2)
    one, other = cache.iterdir()
    one.write_bytes(other.read_bytes())
    load(small)
    load(small, threads=2)
    assert len(tested) == 3


def test_without_a_cache_folder_it_runs_each_time(small, tested, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load(small)
    load(small)
    assert len(tested) == 2


def test_a_folder_in_place_of_the_record_is_no_error(small, cache, tested):
    load(small)
    (record,) = cache.iterdir()
    record.unlink()
    record.mkdir()
    load(small)
    assert len(tested) == 2


def test_processor_library_and_engine_are_part_of_it(small, cache, tmp_path):
    bundle, options, cpuinfo, library = (
        load_bundle(small),
        BackendOptions(),
        tmp_path / "cpu",
        tmp_path / "lib.so",
    )
    cpuinfo.write_text("model name : A\ncpu MHz : 1000\nflags : avx2\n\nmodel name : the second core\n")
    library.write_text("1")
    engine = FakeEngine(bundle)

    def known():
        return PassedTest(bundle, engine, options, cpuinfo).known()

    PassedTest(bundle, engine, options, cpuinfo).remember()
    assert not known(), "the engine does not name its library, so its version is unknown"
    engine.library = library
    PassedTest(bundle, engine, options, cpuinfo).remember()
    assert known()
    cpuinfo.write_text(cpuinfo.read_text().replace("1000", "3000"))
    assert known(), "the clock varies"
    cpuinfo.write_text(cpuinfo.read_text().replace("avx2", "avx512f"))
    assert not known()
    cpuinfo.write_text(cpuinfo.read_text().replace("avx512f", "avx2"))
    engine.description = "another version"
    assert not known()
    engine.description = FakeEngine.description
    assert known()
    os.utime(library, (time.time() + 10, time.time() + 10))
    assert not known()
    library.unlink()
    assert not known()


def test_an_unreadable_processor_remembers_nothing(small, cache, tmp_path):
    bundle, engine = load_bundle(small), FakeEngine(load_bundle(small))
    engine.library = Path(__file__)
    test = PassedTest(bundle, engine, BackendOptions(), tmp_path / "absent")
    test.remember()
    assert not test.known()
    assert not cache.exists()


def test_another_value_is_refused(small):
    with pytest.raises(M2HError, match="choose one of 'auto', True, False"):
        Runtime.load(small, self_test="never")


def test_a_loaded_bundle_is_not_read_again(small, monkeypatch):
    bundle = load_bundle(small)
    monkeypatch.setattr("m2h_deploy.runtime.runtime.load_bundle", None)
    with Runtime.load(bundle, threads=1, calibrated=False) as runtime:
        assert runtime.bundle == dataclasses.replace(bundle, manifest=runtime.manifest)


def test_files_are_verified_beside_other_work_and_before_the_engine_opens(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "copy")
    with (copy / "model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"damaged")
    seen = []
    with pytest.raises(M2HError, match="does not have the manifest's sha256"):
        load_bundle(copy, meanwhile=seen.append)
    assert [manifest.engine.kind for manifest in seen] == ["onnxruntime"]


def test_a_failed_test_is_not_remembered_from_before(small, cache, tested, monkeypatch):
    load(small)
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr("m2h_deploy.runtime.runtime.check_self_test", _fail)
        with pytest.raises(CheckFailed):
            load(small, self_test=True)
    assert list(cache.iterdir()) == []
    load(small)
    assert len(tested) == 3


def _fail(*arguments):
    raise CheckFailed("self-test failed")


def test_a_changed_source_file_runs_the_test_again(small, cache, tested, monkeypatch):
    load(small)
    monkeypatch.setattr("m2h_deploy.runtime.passed_tests._sources", lambda: "others")
    load(small)
    assert len(tested) == 2
