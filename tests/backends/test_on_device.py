"""Test images that are in GPU memory already, on doubles of CUDA and TensorRT."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.backends.cuda_double import Gpu, GpuArray, read
from tests.backends.gpu_machine import Machine, check, image
from tests.backends.small_network import SIDE
from tests.commands import refused

pytest.importorskip("cuda.core")


class TestOnDevice:
    """Images that are on the GPU already."""

    def run(self, machine: Machine, array: Callable[[Gpu], GpuArray]) -> dict[str, np.ndarray]:
        machine.open()  # makes a device current
        backend = machine.open()
        outputs = backend.run_on_device(array(machine.gpu))
        outputs.event.sync()
        return {name: read(one.address, one.shape, one.dtype) for name, one in outputs.arrays.items()}

    def test_the_producers_work_comes_first_and_the_image_is_read_in_place(self, machine):
        arrays: list[GpuArray] = []

        def make(gpu: Gpu) -> GpuArray:
            arrays.append(GpuArray(gpu, image(3)))
            return arrays[0]

        check(self.run(machine, make), image(3))

    def test_an_image_at_an_address_that_tensorrt_does_not_take_is_copied(self, machine):
        arrays = []

        def make(gpu: Gpu) -> GpuArray:
            arrays.append(GpuArray(gpu, image(4), offset=4))
            return arrays[0]

        check(self.run(machine, make), image(4))

    def test_outputs_name_their_stream_for_libraries_that_wait_for_it(self, tensorrt):
        backend = tensorrt.open()
        depth = backend.run_on_device(GpuArray(tensorrt.gpu, image(0))).arrays["depth"]
        interface = depth.__cuda_array_interface__
        assert interface["version"] == 3
        assert interface["stream"] == backend.stream_handle
        assert interface["shape"] == (1, 1, SIDE, SIDE)
        assert interface["typestr"] == "<f4"

    def test_the_image_is_held_as_long_as_it_may_be_read(self, tensorrt):
        backend = tensorrt.open()
        before = len(tensorrt.gpu.device_memory)
        outputs = backend.run_on_device(GpuArray(tensorrt.gpu, image(5)))
        assert len(tensorrt.gpu.device_memory) == before + 2, "the image, and the memory of its lane"
        outputs.event.sync()
        found = {name: read(one.address, one.shape, one.dtype) for name, one in outputs.arrays.items()}
        check(found, image(5))
        backend.run_on_device(GpuArray(tensorrt.gpu, image(6))).event.sync()
        assert len(tensorrt.gpu.device_memory) == before + 2

    def test_arrays_that_do_not_fit_are_refused(self, tensorrt):
        backend, gpu = tensorrt.open(), tensorrt.gpu
        assert "takes an array in GPU memory" in refused(backend.run_on_device, image(0))
        assert "takes an array in the memory of GPU 0" in refused(
            backend.run_on_device, GpuArray(gpu, image(0), device=1)
        )
        halves = GpuArray(gpu, image(0).astype(np.float16))
        assert "contiguous float32, got float16" in refused(backend.run_on_device, halves)
        turned = GpuArray(gpu, image(0))
        turned.strides = (768, 1, 48, 3)
        assert "contiguous float32" in refused(backend.run_on_device, turned)
        assert "got an array of (1, 1, 16, 16)" in refused(backend.run_on_device, GpuArray(gpu, image(0)[:, :1]))


def test_an_array_interface_without_a_stream_is_refused():
    """Version 2, which PyTorch's tensors have: its reader cannot wait for the writer."""
    from cuda.core.utils import StridedMemoryView

    class Version2:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (1,), "typestr": "<f4", "data": (256, False), "strides": None, "version": 2,
        }  # fmt: skip

    with pytest.raises(BufferError, match="v3"):
        StridedMemoryView.from_any_interface(Version2(), stream_ptr=0)
