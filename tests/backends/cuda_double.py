"""A double of cuda.core that runs on the host and can fail at will.

Streams do only what somebody waits for, as late as possible. So a missing dependency between streams, or an array that
is used again too early, gives wrong numbers.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np


class CudaError(Exception):
    """An error of the double."""


class Gpu:
    """The state of the double: its streams, its memory, and what goes wrong."""

    def __init__(self, *, integrated: bool = False, count: int = 2) -> None:
        self.integrated, self.count = integrated, count
        self.handles = itertools.count(1000)
        self.streams: dict[int, Stream] = {}
        self.device_memory: dict[int, int] = {}
        self.page_locked: dict[int, int] = {}
        self.memory_left = 1 << 40
        self.capture_fails = False
        self.log: list[str] = []
        self._current = threading.local()

    @property
    def current(self) -> int:
        """The device that is current in this thread."""
        return getattr(self._current, "device", -1)

    def make_current(self, device: int) -> None:
        self._current.device = device

    def take(self, nbytes: int, kind: dict[int, int]) -> tuple[int, object]:
        if self.current < 0:
            raise CudaError("CUDA_ERROR_INVALID_CONTEXT: no device is current in this thread")
        if nbytes > self.memory_left:
            raise CudaError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
        memory = np.empty(nbytes + 256, np.uint8)
        address = memory.ctypes.data + -memory.ctypes.data % 256
        kind[address] = nbytes
        return address, memory

    def holds(self, address: int, nbytes: int) -> bool:
        """Return whether an address range is in device or page-locked memory."""
        memories = [*self.device_memory.items(), *self.page_locked.items()]
        return any(start <= address and address + nbytes <= start + size for start, size in memories)


class Stream:
    """A queue of work that runs when somebody waits for it."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.handle = next(gpu.handles)
        gpu.streams[self.handle] = self
        self.work: list[Callable[[], None]] = []
        self.done = 0
        self.capturing: list[Callable[[], None]] | None = None

    def enqueue(self, work: Callable[[], None]) -> None:
        (self.work if self.capturing is None else self.capturing).append(work)

    def run_to(self, position: int) -> None:
        while self.done < position:
            self.done += 1
            self.work[self.done - 1]()

    def sync(self) -> None:
        if self.capturing is not None:
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: operation not permitted when stream is capturing")
        self.run_to(len(self.work))

    def record(self, event: Event | None = None) -> Event:
        if self._gpu.current < 0:
            raise CudaError("CUDA_ERROR_INVALID_CONTEXT: no device is current in this thread")
        event = event or Event()
        event.stream, event.position = self, len(self.work)
        return event

    def wait(self, event_or_stream: Event | Stream) -> None:
        other = event_or_stream.record() if isinstance(event_or_stream, Stream) else event_or_stream
        self.enqueue(other.sync)

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self._gpu, self)


class Event:
    """A position in a stream."""

    stream: Stream
    position = 0

    def sync(self) -> None:
        self.stream.run_to(self.position)

    def __sub__(self, other: Event) -> float:
        return 1.5


class GraphBuilder:
    """A stream that is being captured."""

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self._gpu, self.stream = gpu, stream

    def begin_building(self, mode: str = "relaxed") -> GraphBuilder:
        self.stream.capturing = []
        return self

    def enqueue(self, work: Callable[[], None]) -> None:
        self.stream.enqueue(work)

    def end_building(self) -> GraphBuilder:
        self._check()
        self._captured, self.stream.capturing = self.stream.capturing, None
        return self

    def complete(self) -> Graph:
        return Graph(self._gpu, list(self._captured or []))

    def close(self) -> None:
        """End a capture that still runs; as in cuda.core, an invalid one is ended with an error."""
        if self.stream.capturing is not None:
            self.stream.capturing = None
            self._check()

    def _check(self) -> None:
        if self._gpu.capture_fails:
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED: operation failed due to a previous error")


class Graph:
    """Work that was captured."""

    def __init__(self, gpu: Gpu, work: list[Callable[[], None]]) -> None:
        self._gpu, self._work = gpu, work

    def launch(self, stream: Stream) -> None:
        self._gpu.log.append("graph")
        for work in self._work:
            stream.enqueue(work)


class Buffer:
    """Memory at an address; what was allocated is freed with it."""

    gpu: Gpu

    def __init__(self, address: int, size: int, owner: object = None, kind: dict[int, int] | None = None) -> None:
        self.handle, self.size, self._owner, self._kind = address, size, owner, kind

    @classmethod
    def from_handle(cls, ptr: int, size: int) -> Buffer:
        return cls(ptr, size)

    def copy_to(self, dst: Buffer, *, stream: Stream | GraphBuilder) -> Buffer:
        captured = isinstance(stream, GraphBuilder)
        if captured and not all(self.gpu.holds(int(end.handle), end.size) for end in (self, dst)):
            raise CudaError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: pageable memory")
        source, target, size = int(self.handle), int(dst.handle), self.size
        stream.enqueue(lambda: ctypes.memmove(target, source, size))
        return dst

    def __del__(self) -> None:
        if self._kind is not None:
            self._kind.pop(self.handle, None)


class Device:
    """One of the GPUs."""

    gpu: Gpu

    def __init__(self, device_id: int = 0) -> None:
        if device_id >= self.gpu.count:
            raise CudaError(f"device_id must be less than {self.gpu.count}")
        self._index = device_id
        self.properties = SimpleNamespace(integrated=self.gpu.integrated)
        self.compute_capability = (8, 6 + device_id)

    def set_current(self) -> None:
        self.gpu.make_current(self._index)

    def create_stream(self) -> Stream:
        return Stream(self.gpu)

    def create_event(self, options: object = None) -> Event:
        return Event()


class DeviceMemoryResource:
    """Memory of a GPU."""

    gpu: Gpu

    def __init__(self, device_id: int, options: object = None) -> None:
        self._device = device_id

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        address, memory = self.gpu.take(size, self.gpu.device_memory)
        return Buffer(address, size, memory, self.gpu.device_memory)


class LegacyPinnedMemoryResource:
    """Page-locked memory."""

    gpu: Gpu

    def allocate(self, size: int) -> Buffer:
        address, memory = self.gpu.take(size, self.gpu.page_locked)
        return Buffer(address, size, memory, self.gpu.page_locked)


class StridedMemoryView:
    """A view of a GpuArray."""

    gpu: Gpu

    def __init__(self, array: GpuArray) -> None:
        self.exporting_obj = array
        self.ptr, self.shape, self.dtype, self.strides = array.address, array.shape, array.dtype, array.strides
        self.device_id, self.is_device_accessible = array.device, array.device >= 0

    @classmethod
    def from_any_interface(cls, obj: GpuArray, stream_ptr: int | None = None) -> StridedMemoryView:
        if not isinstance(obj, GpuArray):
            raise BufferError("neither object supports DLPack nor CUDA Array Interface")
        if stream_ptr not in (None, -1):
            cls.gpu.streams[stream_ptr].wait(obj.producer)
        return cls(obj)


def install(monkeypatch, gpu: Gpu) -> None:
    """Replace the classes of cuda.core that the project uses."""
    for double in (Buffer, Device, DeviceMemoryResource, LegacyPinnedMemoryResource):
        monkeypatch.setattr(f"cuda.core.{double.__name__}", type(double.__name__, (double,), {"gpu": gpu}))
    view = type("StridedMemoryView", (StridedMemoryView,), {"gpu": gpu})
    monkeypatch.setattr("cuda.core.utils.StridedMemoryView", view)


class GpuArray:
    """An array on the device whose producer writes it on a stream of its own, as late as it may."""

    def __init__(self, gpu: Gpu, values: np.ndarray, *, offset: int = 0, device: int = 0) -> None:
        self._start, memory = gpu.take(values.nbytes + offset, gpu.device_memory)
        weakref.finalize(self, lambda start=self._start, held=memory: gpu.device_memory.pop(start, held) is None)
        self.address, self.shape, self.dtype, self.device = self._start + offset, values.shape, values.dtype, device
        self.strides: tuple[int, ...] | None = None
        self.producer, kept = Stream(gpu), np.ascontiguousarray(values)
        address = self.address
        self.producer.enqueue(lambda: ctypes.memmove(address, kept.ctypes.data, kept.nbytes))


def read(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a copy of an array at an address."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape).copy()


def write(address: int, values: np.ndarray) -> None:
    """Write an array to an address."""
    kept = np.ascontiguousarray(values)
    ctypes.memmove(address, kept.ctypes.data, kept.nbytes)
