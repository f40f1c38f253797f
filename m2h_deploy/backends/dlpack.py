"""Arrays in GPU memory, handed over without a copy: `__cuda_array_interface__` (version 3) and DLPack.

DLPack's structures are built here with ctypes, so that no array library is needed
(https://dmlc.github.io/dlpack/latest/c_api.html).
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2h_deploy.errors import M2HError

CPU, CUDA = 1, 2
_NAME = b"dltensor"
_USED_NAME = b"used_dltensor"
_CODES = {"i": 0, "u": 1, "f": 2}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _ManagedTensor(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_ManagedTensor._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_api = ctypes.pythonapi
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_api.PyCapsule_IsValid.restype = ctypes.c_int
_api.PyCapsule_IsValid.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)

#: Structures that a consumer still holds, with the owner of their memory, by address.
_alive: dict[int, tuple[Any, ...]] = {}


def _forget(address: int) -> None:
    _alive.pop(address, None)


_release = _Deleter(_forget)


@dataclass(frozen=True)
class DeviceArray:
    """A C-contiguous array in device memory. `owner` keeps the memory; the next run of its engine overwrites it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int
    """CUDA stream that the values are written on."""
    owner: Any
    device: tuple[int, int] = (CUDA, 0)
    """DLPack's device type and the device's index."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.device[0] != CUDA:
            raise AttributeError("this array is not in CUDA memory")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "stream": self.stream or None,
            "version": 3,
        }

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule over this memory. The engine has synchronized its stream, so any `stream` may read at once."""
        sides = (ctypes.c_int64 * len(self.shape))(*self.shape)
        kind = _DataType(_CODES[self.dtype.kind], 8 * self.dtype.itemsize, 1)
        tensor = _Tensor(self.pointer, _Device(*self.device), len(self.shape), kind, sides, None, 0)
        managed = _ManagedTensor(tensor, None, _release)
        address = ctypes.addressof(managed)
        _alive[address] = (managed, sides, self.owner)
        return _api.PyCapsule_New(address, _NAME, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


@dataclass(frozen=True)
class Borrowed:
    """Somebody else's array: where it lies, and what keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int | None
    """Stream that the values are written on, where the owner names one."""
    owner: Any


def borrow_cuda(array: Any, stream: int = 0) -> Borrowed | None:
    """View a GPU array of any library through its CUDA array interface or DLPack; None where it has neither.

    `stream` is where it will be read: DLPack's producer makes it wait. Raises M2HError on arrays that are not
    C-contiguous.
    """
    # Looked up on the type first: torch raises on CPU tensors, numpy has neither.
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        _check_contiguous(shape, dtype.itemsize, interface.get("strides"), dtype.itemsize)
        return Borrowed(interface["data"][0], shape, dtype, interface.get("stream"), array)
    if hasattr(array, "__dlpack_device__") and array.__dlpack_device__()[0] == CUDA:
        return _from_capsule(array.__dlpack__(stream=stream or 1))
    return None


def _from_capsule(capsule: Any) -> Borrowed:
    if not _api.PyCapsule_IsValid(capsule, _NAME):
        raise M2HError("the DLPack capsule was already consumed, or its version is not supported")
    address = _api.PyCapsule_GetPointer(capsule, _NAME)
    managed = _ManagedTensor.from_address(address)
    tensor = managed.tensor
    letter = {code: kind for kind, code in _CODES.items()}.get(tensor.dtype.code)
    if letter is None or tensor.dtype.lanes != 1:
        raise M2HError("numpy has no equivalent of the DLPack array's type")
    dtype = np.dtype(f"{letter}{tensor.dtype.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    _check_contiguous(shape, dtype.itemsize, strides, 1)
    # Taking the capsule over means that the producer's deleter is called from here, once.
    _api.PyCapsule_SetName(capsule, _USED_NAME)
    return Borrowed(tensor.data + tensor.byte_offset, shape, dtype, None, _Owner(managed, address))


class _Owner:
    """Call the producer's deleter when the array is no longer used."""

    def __init__(self, managed: _ManagedTensor, address: int) -> None:
        self._delete, self._address = managed.deleter, address

    def __del__(self) -> None:
        if self._delete:
            self._delete(self._address)


def _check_contiguous(shape: tuple[int, ...], itemsize: int, strides: Any, unit: int) -> None:
    if strides is None:
        return
    products = list(itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=itemsize))[::-1]
    wanted = [product * unit // itemsize for product in products]
    if any(side > 1 and have != want for side, have, want in zip(shape, strides, wanted, strict=True)):
        raise M2HError("the GPU array is not C-contiguous: make a contiguous copy of it first")
