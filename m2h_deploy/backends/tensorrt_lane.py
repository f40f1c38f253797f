"""Run frames of one batch size on a GPU: an execution context, device memory and CUDA graphs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from m2h_deploy.backends.base import Pending
from m2h_deploy.backends.buffers import ALIGNMENT, TensorSpec, plan_buffers
from m2h_deploy.backends.cuda import Copy, Cuda, explained, is_page_locked
from m2h_deploy.backends.outputs import OutputArrays, Outputs
from m2h_deploy.backends.tensorrt_log import Messages
from m2h_deploy.errors import M2HError

_log = logging.getLogger("m2h_deploy.backends.tensorrt")

#: What is enqueued on the stream that it is given.
Work = Callable[[Any], None]

#: Number of CUDA graphs that a lane keeps: more than a `Stream` has frames in work.
MAX_FRAMES = 12


@dataclass
class OpenPlan:
    """A plan that is loaded on a GPU."""

    trt: Any
    engine: Any
    specs: tuple[TensorSpec, ...]
    cuda: Cuda
    messages: Messages
    graphs: Literal["captured here", "by TensorRT", "none"]
    """Who makes CUDA graphs of frames."""
    kernels: Any = None
    """TensorRT-RTX's cache of compiled kernels."""
    where: str = ""

    def new_context(self) -> Any:
        """Make an execution context.

        Raises:
            M2HError: TensorRT makes none; usually the GPU's memory is full.
        """
        self.messages.errors.clear()
        if hasattr(self.trt, "IRuntimeCache"):  # TensorRT-RTX
            context = self.engine.create_execution_context(self._runtime_config())
        else:
            context = self.engine.create_execution_context()
        if context is None:
            raise M2HError(
                f"{self.where}: TensorRT made no execution context ({self.said()}): usually the GPU's memory is full; "
                "close other programs that use it"
            )
        return context

    def _runtime_config(self) -> Any:
        config = self.engine.create_runtime_config()
        if config is None:
            raise M2HError(f"{self.where}: TensorRT-RTX made no runtime configuration: {self.said()}")
        if hasattr(self.trt, "CudaGraphStrategy"):  # from 1.2 on
            strategy = "WHOLE_GRAPH_CAPTURE" if self.graphs == "by TensorRT" else "DISABLED"
            config.cuda_graph_strategy = getattr(self.trt.CudaGraphStrategy, strategy)
        if hasattr(self.trt, "DynamicShapesKernelSpecializationStrategy"):
            # A batch is used for many frames: its kernels are compiled at once, and can then be captured and cached.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self.trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        if self.kernels is not None and not config.set_runtime_cache(self.kernels):
            _log.warning("%s: TensorRT-RTX refuses the cache of kernels: %s", self.where, self.said())
        return config

    def said(self) -> str:
        """Return TensorRT's last error."""
        return self.messages.errors[-1] if self.messages.errors else "TensorRT gives no reason"


class _Graphs:
    """CUDA graphs by the addresses that they use. Work is enqueued the first time, and captured the second."""

    def __init__(self) -> None:
        self._graphs: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def run(self, key: tuple[int, ...], work: Work, stream: Any, capture: Callable[[Work], Any]) -> None:
        """Launch the graph of `key` on the stream, or enqueue `work(stream)`.

        `capture` is not kept: a cycle of references would keep the GPU's memory after the engine is closed.
        """
        seen = key in self._graphs
        graph = self._graphs.pop(key, None)
        if seen and graph is None:
            graph = capture(work)
        self._graphs[key] = graph
        if len(self._graphs) > MAX_FRAMES:
            self._graphs.popitem(last=False)
        if graph is None:
            work(stream)
        else:
            graph.launch(stream)


@dataclass(frozen=True, eq=False)
class _Frame:
    """The host arrays of a frame, and how its data moves between them and the device."""

    arrays: tuple[NDArray[Any], ...]
    addresses: dict[str, int]
    """Address of each tensor that the kernels use."""
    before: list[Copy] = field(default_factory=list)
    after: list[Copy] = field(default_factory=list)


class Lane:
    """An execution context for one batch size, with device memory for its tensors.

    On a GPU with memory of its own, a frame is copied to the lane's memory and back. On an integrated GPU the kernels
    read and write the host's page-locked arrays, without copies. From the second time that a frame comes in the same
    page-locked arrays, copies and kernels are one CUDA graph.
    """

    def __init__(self, plan: OpenPlan, batch: int) -> None:
        self._plan, self._cuda = plan, plan.cuda
        self._batch = batch
        self._placements, size = plan_buffers(plan.specs, batch)
        self._image, *results = self._placements
        self._make_context()
        sides = {placement.name: placement.shape[1:] for placement in results}
        self._outputs = OutputArrays(sides, {p.name: p.dtype for p in results}, self._cuda.new_array)
        self._memory, start = self._cuda.new_block(size)
        self._own = _Frame((), {placement.name: start + placement.offset for placement in self._placements})
        self._staged: NDArray[Any] | None = None
        self._graphs = _Graphs()
        self._in_work: InWork | None = None
        self._given: Any = None
        self._computed: Any = None

    def _make_context(self) -> None:
        self._context, self._context_graphs = self._plan.new_context(), self._plan.graphs
        self._bound: dict[str, int] = {}
        image = self._image
        if not self._context.set_input_shape(image.name, image.shape):
            low, _, high = self._plan.engine.get_tensor_profile_shape(image.name, 0)
            raise M2HError(f"the plan takes batches of {low[0]} to {high[0]}, got {image.shape[0]}")

    def run(self, image: NDArray[Any], out: Outputs | None) -> Outputs:
        """Run the plan on an image of the lane's batch; None for `out` gives arrays that the next frame overwrites."""
        frame, stream = self._take(image, out), self._cuda.compute
        key = tuple(array.ctypes.data for array in frame.arrays)
        with explained(f"{self._plan.where}: the GPU failed"):
            if not frame.before:
                self.run_kernels(frame)
            elif all(map(is_page_locked, frame.arrays)):
                self._graphs.run(key, partial(self._enqueue, frame), stream, self._capture)
            else:  # a graph cannot copy pageable memory
                self._cuda.copy(frame.before, stream)
                self.run_kernels(frame)
                self._cuda.copy(frame.after, stream)
            stream.sync()
        return self._outputs.finish()

    def begin(self, image: NDArray[Any], out: Outputs) -> InWork:
        """Start a frame: its copies take place while another lane's frame is computed."""
        cuda, frame = self._cuda, self._take(image, out)
        with explained(f"{self._plan.where}: the GPU failed"):
            cuda.copy(frame.before, cuda.upload)
            cuda.compute.wait(cuda.upload)
            self.run_kernels(frame)
            cuda.download.wait(self._computed)
            cuda.copy(frame.after, cuda.download)
            self._in_work = InWork(self, frame, self._computed, cuda.download.record())
        return self._in_work

    def settle(self) -> None:
        """Wait for the lane's frame in work, if any, whose memory is needed again."""
        if self._in_work is not None:
            self._in_work.finish()

    def finished(self) -> Outputs:
        """Return the outputs of the frame in work, which is over."""
        self._in_work = None
        return self._outputs.finish()

    def run_kernels(self, frame: _Frame | None = None) -> None:
        """Enqueue the kernels without copies; by default on what the lane's own memory holds."""
        frame, compute = frame or self._own, self._cuda.compute
        with explained(f"{self._plan.where}: the GPU failed"):
            self._graphs.run(tuple(frame.addresses.values()), partial(self._execute, frame), compute, self._capture)
            self._computed = compute.record()

    def run_on_device(self, address: int, owner: Any) -> dict[str, int]:
        """Enqueue the kernels on an image at an address of the device; return the addresses of all tensors.

        `owner` of the image is held until the next one is given.
        """
        self.settle()
        with explained(f"{self._plan.where}: the GPU failed"):
            if self._computed is not None:
                self._computed.sync()  # the kernels may still read the last image
            self._given = owner
            return self._run_on_device(address)

    def _run_on_device(self, address: int) -> dict[str, int]:
        frame, own = self._own, self._own.addresses[self._image.name]
        if address % ALIGNMENT:
            self._cuda.copy([Copy(own, address, self._image.nbytes)], self._cuda.compute)
        else:
            frame = replace(frame, addresses={**frame.addresses, self._image.name: address})
        self.run_kernels(frame)
        return frame.addresses

    def profile(self, profiler: Any, runs: int) -> None:
        """Report the layers of `runs` runs to an IProfiler, whose `end` is called after each."""
        self._context.profiler = profiler
        for _ in range(runs):
            self._execute(self._own, self._cuda.compute)
            self._cuda.compute.sync()
            profiler.end()

    def _take(self, image: NDArray[Any], out: Outputs | None) -> _Frame:
        """Prepare a frame in these arrays."""
        self.settle()
        self._outputs.take(self._batch, out)
        host = {self._image.name: self._as_taken(image), **self._outputs.raw}
        if self._cuda.integrated and all(map(_is_direct, host.values())):
            return _Frame(tuple(host.values()), {name: array.ctypes.data for name, array in host.items()})
        before, after = [], []
        for placement in self._placements:
            here, there = host[placement.name].ctypes.data, self._own.addresses[placement.name]
            if placement.is_input:
                before.append(Copy(there, here, placement.nbytes))
            else:
                after.append(Copy(here, there, placement.nbytes))
        return _Frame(tuple(host.values()), self._own.addresses, before, after)

    def _as_taken(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return the image as the engine takes it."""
        if image.dtype == self._image.dtype and image.flags.c_contiguous:
            return image
        if self._staged is None:
            self._staged = self._cuda.new_array(self._image.shape, self._image.dtype)
        np.copyto(self._staged, image, casting="same_kind")
        return self._staged

    def _enqueue(self, frame: _Frame, stream: Any) -> None:
        self._cuda.copy(frame.before, stream)
        self._execute(frame, stream)
        self._cuda.copy(frame.after, stream)

    def _execute(self, frame: _Frame, stream: Any) -> None:
        self._plan.messages.errors.clear()
        self._bind(frame.addresses)
        handle = getattr(stream, "stream", stream).handle  # a graph that is being captured has a stream
        if not self._context.execute_async_v3(int(handle)):
            raise M2HError(f"{self._plan.where}: TensorRT could not run the plan: {self._plan.said()}")

    def _bind(self, addresses: dict[str, int]) -> None:
        if addresses == self._bound:
            return
        self._bound = {}  # as long as not all are set
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise M2HError(f"{self._plan.where}: TensorRT refuses the memory of {name}: {self._plan.said()}")
        self._bound = addresses

    def _capture(self, work: Callable[[Any], None]) -> Any:
        """Capture work as a CUDA graph; None, after one warning, if that fails."""
        plan = self._plan
        if plan.graphs == "by TensorRT" != self._context_graphs:  # another lane has found out
            self._make_context()
        if plan.graphs != "captured here":
            return None
        capturable = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX alone has it
        if capturable is not None and not capturable(int(self._cuda.compute.handle)):
            plan.graphs = "by TensorRT"
            self._make_context()
            return None
        try:
            return self._cuda.capture(work)
        except M2HError as error:
            plan.graphs = "none"
            said = f" ({plan.said()})" if plan.messages.errors else ""
            _log.warning("%s: runs without a CUDA graph, which is slower: %s%s", plan.where, str(error), said)
            return None


def _is_direct(array: NDArray[Any]) -> bool:
    """Return whether the kernels of an integrated GPU can use an array of the host: TensorRT wants it aligned."""
    return is_page_locked(array) and array.ctypes.data % ALIGNMENT == 0


@dataclass(eq=False)
class InWork(Pending):
    """A frame that a lane was given."""

    lane: Lane
    _frame: _Frame
    """Held because the GPU reads and writes its arrays."""
    _computed: Any
    _done: Any
    _outputs: Outputs | None = None

    def wait_computed(self) -> None:
        """Wait until the network has run."""
        with explained("the GPU failed"):
            self._computed.sync()

    def finish(self) -> Outputs:
        """Wait for the frame and return its outputs. Idempotent."""
        if self._outputs is None:
            with explained("the GPU failed"):
                self._done.sync()
            self._outputs = self.lane.finished()
        return self._outputs
