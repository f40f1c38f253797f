"""The few CUDA runtime calls that an engine needs, through cuda-python, with errors in words."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.errors import M2HError


@dataclass(frozen=True)
class Held:
    """Graphs and memory of a `Cuda`."""

    graphs: list[Any]
    allocations: list[int]
    pinned: list[int]


class Cuda:
    """One device and one stream of it. What it hands out is freed by `close`."""

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
        """`name` of the CUDA runtime; its result. Raises M2HError with CUDA's own words."""
        status, *result = getattr(self._runtime, name)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            words = self._runtime.cudaGetErrorString(status)[1].decode()
            raise M2HError(f"CUDA {name} failed: {words} ({status.name})")
        return result[0] if len(result) == 1 else tuple(result) or None

    def use(self) -> None:
        """Make this device the calling thread's: CUDA's choice holds for one thread."""
        self.call("cudaSetDevice", self.device)

    def allocate(self, nbytes: int) -> int:
        """Address of device memory."""
        pointer = int(self.call("cudaMalloc", nbytes))
        self._allocations.append(pointer)
        return pointer

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that the GPU copies to and from without the CPU."""
        pointer = int(self.call("cudaMallocHost", nbytes))
        self._pinned.append(pointer)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(pointer))

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy on the stream, from and to wherever the addresses are."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self.call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self.call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Any) -> Any:
        """Record what `work()` gives the stream as a CUDA graph."""
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
        """Run a captured graph on the stream."""
        self.call("cudaGraphLaunch", graph, self.stream)

    def milliseconds(self, work: Any) -> float:
        """Time that the GPU takes for what `work()` gives the stream, by CUDA events."""
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
        """Compute capability of the device, such as `8.6`."""
        properties = self.call("cudaGetDeviceProperties", self.device)
        return f"{properties.major}.{properties.minor}"

    def detach(self) -> Held:
        """What was handed out so far, as one piece; from here on it is the caller's to `free` or to `attach`."""
        held = Held(self._graphs, self._allocations, self._pinned)
        self._graphs, self._allocations, self._pinned = [], [], []
        return held

    def attach(self, held: Held) -> None:
        """Take back what `detach` gave."""
        self._graphs += held.graphs
        self._allocations += held.allocations
        self._pinned += held.pinned

    def free(self, held: Held) -> None:
        """Free memory and graphs; the stream stays."""
        for graph in held.graphs:
            self._runtime.cudaGraphExecDestroy(graph)
        for pointer in held.allocations:
            self._runtime.cudaFree(pointer)
        for pointer in held.pinned:
            self._runtime.cudaFreeHost(pointer)

    def close(self) -> None:
        """Free everything. Harmless to call twice."""
        self.free(self.detach())
        if self.stream:
            self._runtime.cudaStreamDestroy(self.stream)
        self.stream = 0


def capability_here() -> str:
    """Compute capability of the first GPU. Raises M2HError where there is none."""
    gpu = Cuda()
    try:
        return gpu.capability()
    finally:
        gpu.close()


def missing_gpu() -> str | None:
    """Why there is no usable GPU here, in CUDA's words; None where there is one."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ModuleNotFoundError(str(error), name="cuda-bindings") from None
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess:
        return runtime.cudaGetErrorString(status)[1].decode()
    return None if count else "no CUDA device"
