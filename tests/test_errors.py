"""Test that a supervisor can distinguish a bad image from a failed engine by the error's type."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest

import m2h_deploy
from m2h_deploy import (
    BundleError,
    CheckFailed,
    EngineError,
    EngineTimeout,
    ImageError,
    M2HError,
    MissingExtra,
    Runtime,
    load_bundle,
)
from m2h_deploy.bundle.folder import MANIFEST
from m2h_deploy.causes import MachineError
from m2h_deploy.errors import engine_error, missing_extra
from m2h_deploy.files.images import read_image
from m2h_deploy.runtime.preprocess import as_color_image
from m2h_deploy.runtime.worker import Worker
from tests.fake_engine import FakeEngine

KINDS = (BundleError, ImageError, EngineError, EngineTimeout, MissingExtra, CheckFailed)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_public_and_an_m2h_error_with_an_exit_code(kind):
    assert kind.__name__ in m2h_deploy.__all__
    assert issubclass(kind, M2HError)
    assert kind.exit_code == (1 if kind is CheckFailed else 2)


def test_a_folder_without_a_manifest_and_a_damaged_one_are_bundle_errors(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="not readable JSON"):
        load_bundle(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"schema_version": 1000}))
    with pytest.raises(BundleError, match="upgrade m2h-deploy"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    "image",
    [None, np.zeros(64, np.uint8), np.zeros((64, 64, 3)), np.zeros((64, 64, 2), np.uint8), np.zeros((4, 4), np.uint8)],
)
def test_an_array_that_is_not_a_picture_is_an_image_error(image):
    with pytest.raises(ImageError):
        as_color_image(image)


def test_a_damaged_picture_file_is_an_image_error_and_a_missing_one_is_not(tmp_path):
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError, match="cannot be decoded"):
        read_image(tmp_path / "damaged.png")
    with pytest.raises(M2HError, match="is missing") as caught:
        read_image(tmp_path / "missing.png")
    assert not isinstance(caught.value, ImageError)


def test_a_runtime_distinguishes_a_bad_image_from_a_failed_engine(tiny_bundle):
    bundle = load_bundle(tiny_bundle)
    engine = FakeEngine(bundle)
    runtime = Runtime(bundle, engine)
    with pytest.raises(ImageError, match="expected uint8"):
        runtime(np.zeros((64, 64, 3), np.float32))
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        runtime(np.zeros((64, 64, 3), np.uint8))
    stuck = runtime.engine
    with pytest.raises(EngineTimeout, match="stuck"):
        runtime.replace_engine(stuck)
    runtime.close()
    with pytest.raises(EngineError, match="the runtime is closed"):
        runtime(np.zeros((64, 64, 3), np.uint8))


def test_a_frame_that_an_engine_does_not_finish_times_out():
    worker, begun, release = Worker(), threading.Event(), threading.Event()

    def stuck():
        begun.set()
        release.wait(30)

    future = worker.submit(stuck)
    begun.wait(30)
    worker.close(0.05)
    release.set()
    assert isinstance(future.exception(), EngineTimeout)
    with pytest.raises(EngineError, match="takes no more frames"):
        worker.submit(stuck)


def test_an_engine_that_is_not_installed_names_the_extra(tiny_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "m2h_deploy.backends.onnxruntime", raising=False)
    with pytest.raises(MissingExtra, match=r"\[onnxruntime\]"):
        Runtime.load(tiny_bundle)


def test_an_error_of_an_engine_keeps_its_type():
    assert type(engine_error(M2HError("the engine failed"))) is EngineError
    for error in (MachineError("no memory"), missing_extra("onnx", "build"), CheckFailed("wrong numbers")):
        assert engine_error(error) is error
