"""Test that a build says why it could not run the self-test of its engine."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

import engines.build
from engines import Lowering, TensorRtOptions
from engines.build import _prove
from engines.registry import engine_builder
from engines.request import BuildRequest
from m2h_deploy.backends import driver
from m2h_deploy.bundle.folder import load_bundle, write_manifest
from m2h_deploy.errors import missing_extra
from tests.commands import m2h_text
from tests.fake_driver import fake_driver


@pytest.fixture(scope="module")
def built(tiny_onnx, tmp_path_factory):
    """Build for TensorRT-RTX with the command line; return the bundle and what the command said."""
    pytest.importorskip("tensorrt_rtx")
    if driver.missing_gpu() is None:
        pytest.skip("this machine has a GPU")
    folder = tmp_path_factory.mktemp("built")
    done = m2h_text("build", tiny_onnx, "-o", folder / "rtx", "--engine", "tensorrt-rtx", "--target", "8.6")
    assert done.returncode == 0, done.stderr
    return folder / "rtx", done.stderr


def test_a_plain_graph_for_a_gpu_is_told_what_a_raw_pixel_graph_saves(built):
    bundle, said = built
    assert load_bundle(bundle).manifest.output_bytes == 4 * 112 * 140 * (1 + 41 + 3 + 1)
    assert "each frame brings 2.9 MB back from the GPU: a raw-pixel graph (export --sensor uint8) brings 0.3 MB" in said


def test_the_command_line_says_it_in_one_line(built):
    bundle, said = built
    assert load_bundle(bundle).manifest.self_test.measured == {}
    lines = [line for line in said.splitlines() if "self-test" in line]
    assert lines == [f"the self-test did not run: {driver.missing_gpu()}"]


@pytest.mark.parametrize(
    ("answers", "targets", "reason"),
    [
        (
            {"CUDA": 12060},
            ("8.6",),
            "the NVIDIA driver supports CUDA 12.6, and cuda-bindings 13.5.0 needs 13.0: ",
        ),
        ({"INIT": 100}, ("8.6",), "the NVIDIA driver finds no GPU"),
        ({"CAPABILITY": 89}, ("8.6",), "the plan is for compute capability 8.6, and this GPU has 8.9"),
        (
            {"CAPABILITY": 90},
            (),
            "TensorRT-RTX does not run on this GPU, of compute capability 9.0: use",
        ),
        ({}, ("8.6",), "the engine needs cuda, which is not installed: "),
    ],
)
def test_every_obstacle_is_a_warning(answers, targets, reason, built, tmp_path, monkeypatch, caplog):
    def without_bindings(bundle, options):
        raise missing_extra("cuda", "tensorrt-rtx", "the engine")

    folder = shutil.copytree(built[0], tmp_path / "rtx")
    manifest = load_bundle(folder).manifest
    engine = manifest.engine.model_copy(update={"targets": targets})
    write_manifest(folder, manifest.model_copy(update={"engine": engine}))
    monkeypatch.setattr(driver, "LIBRARY", str(fake_driver(tmp_path)))
    monkeypatch.setattr(driver, "installed_version", lambda name: "13.5.0")
    monkeypatch.setattr(engines.build, "open_backend", without_bindings)
    for name, value in answers.items():
        monkeypatch.setenv(f"FAKE_{name}", str(value))
    options = TensorRtOptions(targets=targets)
    request = BuildRequest(Path("m.onnx"), engine_builder("tensorrt-rtx"), None, options, Lowering(), None)
    with caplog.at_level(logging.WARNING, "m2h_deploy"):
        assert _prove(folder, request, brought=False) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the self-test did not run: {reason}")
