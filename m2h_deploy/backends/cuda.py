"""One GPU through cuda.core: streams, device and page-locked memory, copies and CUDA graphs."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from m2h_deploy.errors import M2HError, first_line

#: Ranges of page-locked memory by their first address; the values are the addresses after the last byte.
_page_locked: dict[int, int] = {}


class Copy(NamedTuple):
    """A copy of `nbytes` between two addresses, on the host or the device."""

    target: int
    source: int
    nbytes: int


class Cuda:
    """One device with a stream for each direction of copies and one for kernels.

    Objects of cuda.core free what they hold when they are no longer referenced, so there is nothing to close.

    Raises:
        M2HError: CUDA refuses; the message has its reason. So do all methods but `copy`.
    """

    def __init__(self, index: int = 0) -> None:
        from cuda.core import (
            Buffer,
            Device,
            DeviceMemoryResource,
            DeviceMemoryResourceOptions,
            EventOptions,
            LegacyPinnedMemoryResource,
        )

        self.index = index
        self._buffer = Buffer
        self._timing = EventOptions(timing_enabled=True)
        with explained(f"GPU {index} cannot be used"):
            self.device = Device(index)
            self.device.set_current()
            self._host_memory = LegacyPinnedMemoryResource()
            self.upload, self.compute, self.download = (self.device.create_stream() for _ in range(3))
            self.integrated = bool(self.device.properties.integrated)
            # A pool of its own: memory of the process's default pool would not return to the system.
            pool = None if self.integrated else DeviceMemoryResource(index, DeviceMemoryResourceOptions())
            self._device_memory = pool
            major, minor = self.device.compute_capability
        self.capability = f"{major}.{minor}"

    def use(self) -> None:
        """Make this device current in the calling thread; CUDA keeps the current device per thread."""
        with explained(f"GPU {self.index} cannot be used"):
            self.device.set_current()

    def new_block(self, nbytes: int) -> tuple[object, int]:
        """Allocate memory for kernels; return its owner, with which it is freed, and its address.

        It is the device's own, or page-locked memory of the host on an integrated GPU.
        """
        if self._device_memory is None:
            array = self.new_array((nbytes,), np.uint8)
            return array, array.ctypes.data
        with explained(f"no {nbytes / 2**20:.0f} MiB of memory on GPU {self.index}"):
            buffer = self._device_memory.allocate(nbytes, stream=self.compute)
            self.compute.sync()  # the other streams may use it at once
        return buffer, int(buffer.handle)

    def new_array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate an array in page-locked memory, which the GPU reads and writes directly.

        The memory lives as long as the array and its views.
        """
        nbytes = max(math.prod(shape) * np.dtype(dtype).itemsize, 1)
        self.use()
        with explained(f"no {nbytes / 2**20:.0f} MiB of page-locked memory"):
            buffer = self._host_memory.allocate(nbytes)
        address = int(buffer.handle)
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        memory.owner = buffer  # type: ignore[attr-defined]
        _page_locked[address] = address + nbytes
        weakref.finalize(memory, _page_locked.pop, address, None)
        return np.ctypeslib.as_array(memory)[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def copy(self, copies: Sequence[Copy], stream: Any) -> None:
        """Enqueue copies on a stream, or on a graph that is being captured."""
        for target, source, nbytes in copies:
            from_, to = (self._buffer.from_handle(address, nbytes) for address in (source, target))
            from_.copy_to(to, stream=stream)

    def capture(self, work: Callable[[Any], None]) -> Any:
        """Record what `work(stream)` enqueues on the compute stream as a CUDA graph."""
        with explained("CUDA cannot capture a graph"):
            builder = self.compute.create_graph_builder()
            try:
                builder.begin_building("thread_local")
                work(builder)
                return builder.end_building().complete()
            finally:
                with _ignored():  # it ends a capture that has failed, and reports the failure again
                    builder.close()

    def milliseconds(self, work: Callable[[], None]) -> float:
        """Return the GPU time of what `work()` enqueues on the compute stream, measured by CUDA events."""
        with explained("CUDA cannot measure time"):
            start, end = (self.device.create_event(self._timing) for _ in range(2))
            self.compute.record(start)
            work()
            self.compute.record(end)
            end.sync()
            return float(end - start)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an error of CUDA into M2HError, with `what` failed before CUDA's own words."""
    try:
        yield
    except M2HError:
        raise
    except Exception as error:  # cuda.core's error types are not exported
        raise M2HError(f"{what}: {first_line(error)}") from None


@contextmanager
def _ignored() -> Iterator[None]:
    try:
        yield
    except Exception:  # cuda.core's error types are not exported
        return


def is_page_locked(array: NDArray[Any]) -> bool:
    """Return whether a contiguous array lies in memory of `Cuda.new_array`, of any device of this process."""
    first = array.ctypes.data
    return any(start <= first and first + array.nbytes <= end for start, end in _page_locked.copy().items())
