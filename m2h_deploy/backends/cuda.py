"""The few CUDA runtime calls that an engine needs, through cuda-python, with readable errors."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError


@dataclass(frozen=True)
class Held:
    """Graphs and memory taken out of a `Cuda`."""

    graphs: list[Any]
    allocations: list[int]
    pinned: list[int]


class Cuda:
    """One device and one stream on it. `close` frees all memory and graphs obtained from it."""

    def __init__(self, device: int = 0) -> None:
        from cuda.bindings import runtime

        self._runtime = runtime
        self._allocations: list[int] = []
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self.device = device
        self.use()
        self.stream = int(self.call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call the function `name` of the CUDA runtime and return its result.

        Raises:
            M2HError: The call fails; has CUDA's own message.
        """
        status, *result = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            words = self._runtime.cudaGetErrorString(status)[1].decode()
            raise M2HError(f"CUDA {name} failed: {words} ({status.name})")
        return result[0] if len(result) == 1 else tuple(result) or None

    def use(self) -> None:
        """Make this device current in the calling thread; CUDA keeps the current device per thread."""
        self.call("cudaSetDevice", self.device)

    def allocate(self, nbytes: int) -> int:
        """Allocate device memory and return its address."""
        pointer = int(self.call("cudaMalloc", nbytes))
        self._allocations.append(pointer)
        return pointer

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Allocate page-locked host memory, which the GPU copies directly; uint8 (nbytes,)."""
        pointer = int(self.call("cudaMallocHost", nbytes))
        self._pinned.append(pointer)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the stream between two addresses, on the device or the host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self.call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Wait for all work on the stream."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Any) -> Any:
        """Record the work that `work()` enqueues on the stream as a CUDA graph."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self.call("cudaStreamEndCapture", self.stream)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        self._graphs.append(executable)
        return executable

    def launch(self, graph: Any) -> None:
        """Launch a captured graph on the stream."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def milliseconds(self, work: Any) -> float:
        """Return the GPU time of the work that `work()` enqueues, measured by CUDA events."""
        start, end = self.call("cudaEventCreate"), self.call("cudaEventCreate")
        try:
            self.call("cudaEventRecord", start, self.stream)
            work()
            self.call("cudaEventRecord", end, self.stream)
            self.call("cudaEventSynchronize", end)
            return float(self.call("cudaEventElapsedTime", start, end))
        finally:
            self.call("cudaEventDestroy", start)
            self.call("cudaEventDestroy", end)

    def capability(self) -> str:
        """Return the compute capability of the device, such as `8.6`."""
        properties = self.call("cudaGetDeviceProperties", self.device)
        return f"{properties.major}.{properties.minor}"

    def detach(self) -> Held:
        """Take out all memory and graphs allocated so far; the caller must `free` or `attach` them."""
        held = Held(self._graphs, self._allocations, self._pinned)
        self._graphs, self._allocations, self._pinned = [], [], []
        return held

    def attach(self, held: Held) -> None:
        """Put back what `detach` returned."""
        self._graphs += held.graphs
        self._allocations += held.allocations
        self._pinned += held.pinned

    def free(self, held: Held) -> None:
        """Free memory and graphs; the stream is kept."""
        for graph in held.graphs:
            self._runtime.cudaGraphExecDestroy(graph)
        for pointer in held.allocations:
            self._runtime.cudaFree(pointer)
        for pointer in held.pinned:
            self._runtime.cudaFreeHost(pointer)

    def close(self) -> None:
        """Free everything, including the stream. Idempotent."""
        self.free(self.detach())
        if self.stream:
            self._runtime.cudaStreamDestroy(self.stream)
        self.stream = 0
