"""Test ONNX Runtime on a GPU as far as that is possible without one: what binding copies, and why it does not start."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime
import pytest

from m2h_deploy import Runtime, Stream
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.backends import onnxruntime as backend_module
from m2h_deploy.bundle.folder import load_bundle
from tests.backends.small_network import CHANNELS, SIDE, small_bundle, small_onnx
from tests.commands import refused
from tests.stream.sources import frames, picture


class CopyingSession:
    """A session whose binding copies the input when it is bound, as ONNX Runtime's does for a GPU."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def io_binding(self) -> CopyingBinding:
        return CopyingBinding()

    def run_with_iobinding(self, binding: CopyingBinding) -> None:
        values = self._session.run(None, {"image": binding.image})
        for node, value in zip(self._session.get_outputs(), values, strict=True):
            ctypes.memmove(binding.addresses[node.name], value.ctypes.data, value.nbytes)


class CopyingBinding:
    """See CopyingSession."""

    def __init__(self) -> None:
        self.image = np.empty(0)
        self.addresses: dict[str, int] = {}

    def bind_input(self, name, device_type, device_id, element_type, shape, buffer_ptr) -> None:
        size = int(np.prod(shape)) * np.dtype(element_type).itemsize
        self.image = np.frombuffer((ctypes.c_uint8 * size).from_address(buffer_ptr), element_type).reshape(shape).copy()

    def bind_output(self, name, device_type, device_id, element_type, shape, buffer_ptr) -> None:
        self.addresses[name] = buffer_ptr


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    opened = backend_module.open_session

    def open_on_gpu(bundle, options, **arguments):
        session, _ = opened(bundle, options, **arguments)
        return CopyingSession(session), "cuda"

    monkeypatch.setattr(backend_module, "open_session", open_on_gpu)
    return small_bundle(tmp_path / "bundle", "onnxruntime")


def depth_of(runtime: Runtime, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(small_onnx(), providers=["CPUExecutionProvider"])
    tensor = runtime.preprocess(image, np.empty((1, 3, SIDE, SIDE), np.float32))
    return session.run(list(CHANNELS)[:1], {"image": tensor})[0][0, 0]


@pytest.mark.parametrize("way", ["call", "batch", "submit", "queue", "latest"])
def test_a_new_frame_in_the_same_array_gives_a_new_prediction(bundle, way):
    runtime = Runtime.load(bundle)
    pictures = [picture(60 * index + 5, SIDE) for index in range(4)]
    if way == "call":
        found = [runtime(image) for image in pictures]
    elif way == "batch":
        found = runtime.batch(pictures, at_once=2)
    elif way == "submit":
        found = [runtime.submit(image).result() for image in pictures]
    else:
        results = list(Stream(runtime, frames(4, side=SIDE), policy=way))
        pictures, found = [picture(one.id, SIDE) for one in results], [one.prediction for one in results]
    for image, prediction in zip(pictures, found, strict=True):
        np.testing.assert_allclose(prediction.depth, depth_of(runtime, image), rtol=1e-5)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("libonnxruntime_providers_cuda.so", "libcublasLt.so.13: cannot open shared object file"),
        ("", "no NVIDIA driver is installed"),
    ],
)
def test_a_provider_that_does_not_start_is_reported_with_its_reason(tmp_path, monkeypatch, missing, reason):
    """ONNX Runtime falls back to the CPU and writes the reason to its log only."""

    def load(path, mode=0):
        if missing and path.endswith(missing):
            raise OSError(reason + ": No such file or directory")

    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr("m2h_deploy.backends.onnxruntime_gpu.ctypes.CDLL", load)
    monkeypatch.setattr("m2h_deploy.backends.onnxruntime_gpu.missing_gpu", lambda **_: reason)
    made = onnxruntime.InferenceSession

    def fall_back(file, options, providers):
        return made(file, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    bundle = small_bundle(tmp_path / "bundle", "onnxruntime")
    said = refused(open_backend, load_bundle(bundle), BackendOptions(device="cuda"))
    assert f"the provider 'cuda' does not start here: {reason}" in said
