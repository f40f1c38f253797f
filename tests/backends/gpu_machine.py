"""A machine with doubles of CUDA and TensorRT, and what its plans should compute."""

from __future__ import annotations

import numpy as np
import onnxruntime

from m2h_deploy.backends import BackendOptions, open_backend, tensorrt_api, tensorrt_log
from m2h_deploy.bundle.folder import load_bundle
from tests.backends.cuda_double import Gpu, install
from tests.backends.small_network import CHANNELS, SIDE, small_bundle, small_onnx
from tests.backends.tensorrt_double import Tensorrt

KINDS = ("tensorrt", "tensorrt-rtx")


class Machine:
    """A machine with GPUs, TensorRT, and a bundle for it."""

    def __init__(self, monkeypatch, folder, kind: str, *, integrated: bool = False) -> None:
        self.gpu, self.kind = Gpu(integrated=integrated), kind
        self.trt = Tensorrt(self.gpu, rtx=kind == "tensorrt-rtx")
        self._folder = folder
        install(monkeypatch, self.gpu)
        monkeypatch.setattr(tensorrt_api, "_modules", {kind: self.trt.module()})
        monkeypatch.setattr(tensorrt_log, "_loggers", {})
        monkeypatch.setattr("m2h_deploy.backends.tensorrt_plan.missing_gpu", lambda index=0: None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))

    def bundle(self, batch: int | None = None, *, half: bool = False, **options: object):
        path = self._folder / f"bundle{len(list(self._folder.iterdir()))}"
        return small_bundle(path, self.kind, batch, half=half, **options)

    def open(self, bundle=None, **options: object):
        return open_backend(load_bundle(bundle or self.bundle()), BackendOptions(**options))


def image(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((batch, 3, SIDE, SIDE), np.float32)


def expected(images: np.ndarray, *, half: bool = False) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(small_onnx(half=half), providers=["CPUExecutionProvider"])
    return dict(zip(CHANNELS, session.run(None, {"image": images}), strict=True))


def check(outputs, images: np.ndarray, **options: bool) -> None:
    for name, value in expected(images, **options).items():
        np.testing.assert_array_equal(outputs[name], value, err_msg=name)
