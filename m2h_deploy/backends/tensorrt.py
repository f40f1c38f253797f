"""Run a plan of TensorRT or TensorRT-RTX on an NVIDIA GPU, with only numpy and cuda-python.

Arrays of `new_array` and `new_outputs` are page-locked, so that the GPU copies them directly. One frame at a time is a
single CUDA graph of copies and kernels; with `begin`, copies of one frame overlap the kernels of another. It has not
been run on a GPU: the tests run it on a double of CUDA and TensorRT.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from m2h_deploy.backends.base import Backend, BackendOptions, Pending
from m2h_deploy.backends.cuda import Cuda, explained
from m2h_deploy.backends.outputs import OutputArrays, Outputs, check_image
from m2h_deploy.backends.tensorrt_api import NAMES, load_tensorrt
from m2h_deploy.backends.tensorrt_lane import Lane, OpenPlan
from m2h_deploy.backends.tensorrt_log import listen
from m2h_deploy.backends.tensorrt_plan import (
    cache_path,
    check_capability,
    check_code,
    check_gpu,
    check_plugins,
    check_versions,
    check_whole,
    device_index,
    load_plugins,
    read_plan,
    restore_weights,
    start_runtime,
    tensor_specs,
)
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.files.cache import read_checked, write_checked

_log = logging.getLogger("m2h_deploy.backends.tensorrt")

#: Number of pairs of batch size and frame in work whose execution contexts are kept.
MAX_LANES = 4


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous array in GPU memory, for libraries that read CUDA's array interface, such as PyTorch and CuPy.

    The next run of its engine overwrites it. A library that does not wait for the interface's stream, such as PyTorch,
    must read it after `DeviceOutputs.event` only.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype
    stream: int
    """The CUDA stream that writes it."""
    owner: Any

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The array, version 3 of the interface."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream,
            "version": 3,
        }


@dataclass(frozen=True)
class DeviceOutputs:
    """Outputs in GPU memory; they are written once `event`, an event of cuda.core, is done."""

    arrays: dict[str, DeviceArray]
    event: Any


class TensorRTBackend(Backend):
    """One plan on one GPU. Not thread-safe.

    `options.extra` may hold `cuda_graph`: False launches every kernel separately, to measure the gain of the graph.
    """

    in_work = 2

    def __init__(self, bundle: Bundle, options: BackendOptions) -> None:
        manifest = bundle.manifest
        kind, self._where = manifest.engine.kind, os.fspath(bundle.path)
        trt = load_tensorrt(kind)
        logger, messages = listen(kind)
        plan = read_plan(bundle)
        check_versions(manifest, trt.__version__, self._where)
        libraries, contains_code = check_plugins(bundle, options.plugins), check_code(bundle, options)
        index = device_index(options.device)
        check_gpu(trt, logger, plan, bundle, index)
        self._cuda = Cuda(index)
        runtime = start_runtime(trt, logger, messages, kind)
        check_whole(trt, runtime, plan, bundle)
        check_capability(manifest, self._cuda.capability, self._where)
        load_plugins(runtime, libraries)
        if contains_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan)
        self._plan = OpenPlan(trt, engine, (), self._cuda, messages, "captured here", where=self._where)
        if engine is None:
            raise M2HError(f"{bundle.path}: {NAMES[kind]} refuses the plan ({self._plan.said()}); build it again here")
        restore_weights(trt, engine, logger, bundle)
        self._plan.specs = tensor_specs(trt, engine)
        self._results = {spec.name: spec for spec in self._plan.specs if not spec.is_input}
        (self._image,) = (spec for spec in self._plan.specs if spec.is_input)
        if not options.extra.get("cuda_graph", True):
            self._plan.graphs = "none"
        self._cache_file = cache_path(bundle, self._cuda.capability, trt.__version__)
        self._cached = b""
        self._load_kernels()
        self._lanes: OrderedDict[tuple[int, int], Lane] = OrderedDict()
        self._turn = 0
        self._open = True
        self.description = f"{NAMES[kind]} {trt.__version__}, GPU {index} ({self._cuda.capability})"

    def run(self, image: NDArray[np.float32], out: Outputs | None = None) -> Outputs:
        """Run the plan on `image`, (N, 3, H, W) or raw pixels for a sensor graph; see `Backend.run`."""
        return self._lane(image.shape).run(image, out)

    def begin(self, image: NDArray[np.float32], out: Outputs) -> Pending:
        """Start a frame: up to `in_work` of them overlap; see `Backend.begin`."""
        self._turn = (self._turn + 1) % self.in_work
        return self._lane(image.shape, self._turn).begin(image, out)

    def run_on_device(self, image: Any) -> DeviceOutputs:
        """Run the plan on an array in this GPU's memory and leave the results there.

        Args:
            image: (N, 3, H, W) or raw pixels, contiguous, of the engine's type, of any library with DLPack or CUDA's
                array interface. What its library has enqueued on its current stream is waited for on the GPU. It must
                not change before the event is done.

        Raises:
            M2HError: The array does not fit, or the engine fails.
        """
        from cuda.core.utils import StridedMemoryView

        self._check_open()
        self._cuda.use()  # the library's stream may be the current device's default one
        compute = self._cuda.compute
        with explained("run_on_device takes an array in GPU memory, of a library with DLPack"):
            view = StridedMemoryView.from_any_interface(image, stream_ptr=int(compute.handle))
            dtype = np.dtype(view.dtype)
        if not view.is_device_accessible or view.device_id != self._cuda.index:
            raise M2HError(
                f"run_on_device takes an array in the memory of GPU {self._cuda.index}: give others to run()"
            )
        if dtype != self._image.dtype or not _is_contiguous(view):
            raise M2HError(
                f"run_on_device takes contiguous {self._image.dtype}, got {view.dtype}: convert it on the GPU"
            )
        lane = self._lane(tuple(view.shape))
        addresses = lane.run_on_device(int(view.ptr), view)
        arrays = {
            name: DeviceArray(addresses[name], (view.shape[0], *spec.shape[1:]), spec.dtype, int(compute.handle), lane)
            for name, spec in self._results.items()
        }
        with explained(f"{self._where}: the GPU failed"):
            return DeviceOutputs(arrays, compute.record())

    def new_array(self, shape: Any, dtype: DTypeLike) -> NDArray[Any]:
        """Allocate a page-locked array."""
        return self._cuda.new_array(shape, dtype)

    def new_outputs(self, batch: int = 1) -> Outputs:
        """Allocate page-locked arrays for `out`, by output name."""
        sides = {name: spec.shape[1:] for name, spec in self._results.items()}
        dtypes = {name: spec.dtype for name, spec in self._results.items()}
        return OutputArrays(sides, dtypes, self._cuda.new_array).new(batch)

    @property
    def stream_handle(self) -> int:
        """The `cudaStream_t` that the kernels run on."""
        return int(self._cuda.compute.handle)

    def enqueue(self, batch: int = 1) -> None:
        """Enqueue one inference without copies, on what the input holds."""
        self._lane((batch, *self._image.shape[1:])).run_kernels()

    def gpu_milliseconds(self, runs: int, batch: int = 1) -> list[float]:
        """Run the engine without copies on what its input holds; return the milliseconds of each run by CUDA events."""
        for _ in range(2):  # the second run is captured as a graph
            self.enqueue(batch)
        return [self._cuda.milliseconds(lambda: self.enqueue(batch)) for _ in range(runs)]

    def profile(self, profiler: Any, runs: int) -> str:
        """Report the layers of `runs` runs to `profiler`, an IProfiler; return the engine inspector's JSON about them.

        Runs without a CUDA graph, which does not report layers. `profiler.end()` is called after each run.
        """
        self._check_open()
        self._cuda.use()
        with explained(f"{self._where}: the GPU failed"):
            Lane(self._plan, 1).profile(profiler, runs)
        inspector = self._plan.engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._plan.trt.LayerInformationFormat.JSON))

    def close(self) -> None:
        """Release the engine, its contexts and all GPU memory. Idempotent."""
        if not self._open:
            return
        self._open = False
        try:
            self._cuda.use()
            for lane in self._lanes.values():
                lane.settle()
            self._save_kernels()
        except M2HError as error:
            _log.warning("%s: while it is closed: %s", self._where, str(error))
        finally:
            self._lanes.clear()
            self._plan.engine = self._plan.kernels = None

    def _check_open(self) -> None:
        if not self._open:
            raise M2HError(f"{self._where}: the engine is closed")

    def _lane(self, shape: tuple[int, ...], turn: int = 0) -> Lane:
        """Return the lane for images of a shape; the one used least recently makes room for a new one."""
        self._check_open()
        self._cuda.use()
        batch = self._image.shape[0] if self._image.shape[0] > 0 else None
        check_image(shape, batch, self._image.shape[1:], self._where)
        key = (shape[0], turn)
        if key in self._lanes:
            self._lanes.move_to_end(key)
            return self._lanes[key]
        lane = Lane(self._plan, shape[0])
        self._lanes[key] = lane
        if len(self._lanes) > MAX_LANES:
            _, oldest = self._lanes.popitem(last=False)
            oldest.settle()
        lane.run_kernels()
        with explained(f"{self._where}: the GPU failed"):
            self._cuda.compute.sync()
        self._save_kernels()
        return lane

    def _load_kernels(self) -> None:
        """Give TensorRT-RTX the kernels that an earlier start has compiled for this GPU."""
        if not hasattr(self._plan.trt, "IRuntimeCache"):
            return  # TensorRT's plans hold their kernels
        config = self._plan.engine.create_runtime_config()
        self._plan.kernels = None if config is None else config.create_runtime_cache()
        cached = None if self._cache_file is None else read_checked(self._cache_file)
        if self._plan.kernels is not None and cached is not None and self._plan.kernels.deserialize(cached):
            self._cached = cached

    def _save_kernels(self) -> None:
        """Keep the compiled kernels for the next start, which is only slower if the folder cannot be written."""
        if self._plan.kernels is None or self._cache_file is None:
            return
        serialized = self._plan.kernels.serialize()
        kernels = b"" if serialized is None else bytes(memoryview(serialized))
        if kernels and kernels != self._cached and write_checked(self._cache_file, kernels):
            self._cached = kernels


def _is_contiguous(view: Any) -> bool:
    """Return whether a view of cuda.core, whose strides count elements, is C-contiguous."""
    if view.strides is None:
        return True
    wanted = 1
    for side, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if side > 1 and stride != wanted:
            return False
        wanted *= side
    return True
