"""Arrays change hands through DLPack and CUDA's array interface without a copy; on host memory, for want of a GPU."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from m2h_deploy.backends.dlpack import CPU, CUDA, DeviceArray, _alive, _from_capsule, borrow_cuda
from m2h_deploy.errors import M2HError


def on_cpu(array: np.ndarray) -> DeviceArray:
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, 0, array, (CPU, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64])
def test_an_array_goes_out_through_dlpack_without_a_copy(dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    seen = np.from_dlpack(on_cpu(array))
    np.testing.assert_array_equal(seen, array)
    array[1, 2, 3] = 7
    assert seen[1, 2, 3] == 7


def test_memory_is_kept_until_the_consumer_lets_it_go():
    held = len(_alive)
    seen = np.from_dlpack(on_cpu(np.ones(5, np.float32)))
    assert len(_alive) == held + 1
    gc.collect()
    assert seen.sum() == 5
    del seen
    gc.collect()
    assert len(_alive) == held


def test_an_array_comes_in_through_dlpack_without_a_copy():
    array = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    borrowed = _from_capsule(array.__dlpack__())
    assert borrowed.pointer == array.ctypes.data
    assert (borrowed.shape, borrowed.dtype) == (array.shape, array.dtype)


def test_a_capsule_is_taken_once_and_an_odd_layout_not_at_all():
    capsule = np.zeros(3, np.float32).__dlpack__()
    _from_capsule(capsule)
    with pytest.raises(M2HError, match="already consumed"):
        _from_capsule(capsule)
    with pytest.raises(M2HError, match="C-contiguous"):
        _from_capsule(np.zeros((4, 4), np.float32).T[1:].__dlpack__())


def test_gpu_arrays_are_found_by_their_interface_and_host_arrays_are_not():
    class OnGpu:
        def __init__(self, strides=None):
            self.__cuda_array_interface__ = {
                "shape": (1, 3, 4, 5),
                "typestr": "<f4",
                "data": (4096, False),
                "strides": strides,
                "stream": 7,
                "version": 3,
            }

    borrowed = borrow_cuda(OnGpu())
    assert (borrowed.pointer, borrowed.shape, borrowed.stream) == (4096, (1, 3, 4, 5), 7)
    assert borrow_cuda(OnGpu((240, 80, 20, 4))) is not None
    with pytest.raises(M2HError, match="C-contiguous"):
        borrow_cuda(OnGpu((240, 4, 60, 12)))
    assert borrow_cuda(np.zeros((1, 3, 4, 5), np.float32)) is None


def test_gpu_arrays_say_where_they_are():
    array = DeviceArray(4096, (2, 3), np.dtype(np.float32), 9, None)
    interface = array.__cuda_array_interface__
    assert (interface["data"], interface["shape"], interface["typestr"], interface["stream"]) == (
        (4096, False),
        (2, 3),
        "<f4",
        9,
    )
    assert array.__dlpack_device__() == (CUDA, 0)
    assert borrow_cuda(array).pointer == 4096
