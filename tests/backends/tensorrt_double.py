"""A double of TensorRT's Python module whose plans are ONNX files, run by ONNX Runtime on the double of CUDA."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from tests.backends.cuda_double import Gpu, read, write

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
LARGEST_BATCH = 4


@dataclass
class Tensorrt:
    """The state of the double: what was asked of it, and what goes wrong."""

    gpu: Gpu
    rtx: bool
    calls: list[str] = field(default_factory=list)
    loggers: list[Any] = field(default_factory=list)
    no_start: str = ""
    """TensorRT's error when its runtime starts."""
    no_context: bool = False
    refuses_address: bool = False
    execution: str = ""
    """TensorRT's error when a frame is run."""
    captures_badly: bool = False
    """A captured graph is invalid."""
    not_capturable: bool = False
    invalid: int = 0
    """Diagnostics of the plan's validity."""

    def say(self, text: str) -> None:
        for logger in self.loggers:
            logger.log(ILogger.ERROR, text)

    def module(self) -> SimpleNamespace:
        """Return the Python module."""
        kinds = {kind.__name__: self.bound(kind) for kind in (ILogger, Runtime)}
        module = SimpleNamespace(
            __version__="1.7.1.116" if self.rtx else "10.16.1.11",
            IProfiler=object,
            TensorIOMode=Mode,
            LayerInformationFormat=SimpleNamespace(JSON="json"),
            nptype=lambda dtype: dtype,
            **kinds,
        )
        if self.rtx:
            module.CudaGraphStrategy, module.EngineValidity = Strategy, Validity
            module.IRuntimeCache = RuntimeCache
            module.DynamicShapesKernelSpecializationStrategy = Specialization
            module.EngineInvalidityDiagnostics = Diagnostics
        return module

    def bound(self, kind: type) -> type:
        """Return a class of the double with this state, and on TensorRT-RTX with what only that has."""
        rtx = {Runtime: RtxRuntime, Engine: RtxEngine, Context: RtxContext}
        return type(kind.__name__, (rtx.get(kind, kind) if self.rtx else kind,), {"trt": self})


class Mode(enum.Enum):
    INPUT, OUTPUT = range(2)


class Strategy(enum.Enum):
    DISABLED, WHOLE_GRAPH_CAPTURE = range(2)


class Specialization(enum.Enum):
    LAZY, EAGER, NONE = range(3)


class Validity(enum.Enum):
    VALID, INVALID = range(2)


class Diagnostics(enum.IntFlag):
    VERSION_MISMATCH, UNSUPPORTED_CC, MALFORMED_ENGINE = 1, 2, 4


class ILogger:
    """The base of the project's logger."""

    ERROR = 1
    trt: Tensorrt

    def __init__(self) -> None:
        self.trt.loggers.append(self)


class RuntimeCache:
    """Kernels that were compiled."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = set(blob.decode().split(","))
        return True

    def serialize(self) -> bytes:
        return ",".join(sorted(self.kernels)).encode()


class RuntimeConfig:
    """The configuration of a context on TensorRT-RTX."""

    cuda_graph_strategy = Strategy.DISABLED
    dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
    cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class Context:
    """An execution context."""

    trt: Tensorrt
    profiler: Any = None

    def __init__(self, engine: Engine, config: RuntimeConfig | None) -> None:
        self._engine, self._config = engine, config
        self._addresses: dict[str, int] = {}
        self._shape = engine.session.get_inputs()[0].shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return 1 <= shape[0] <= LARGEST_BATCH

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.trt.refuses_address or memory % 256 or not self.trt.gpu.holds(memory, 1):
            self.trt.say(f"{name} has an address that is refused")
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.trt.gpu
        stream = gpu.streams[stream_handle]
        if self.trt.execution:
            self.trt.say(self.trt.execution)
            return False
        if stream.capturing is not None and self.trt.captures_badly:
            self.trt.say("a kernel cannot be captured")
            gpu.capture_fails = True
        gpu.log.append("captured" if stream.capturing is not None else "enqueued")
        addresses, shape, session = dict(self._addresses), tuple(self._shape), self._engine.session
        source = session.get_inputs()[0]

        def compute() -> None:
            image = read(addresses[source.name], shape, TYPES[source.type])
            values = session.run(None, {source.name: image})
            for output, value in zip(session.get_outputs(), values, strict=True):
                write(addresses[output.name], value)

        stream.enqueue(compute)
        if self._config is not None and self._config.cache is not None:
            eager = self._config.dynamic_shapes_kernel_specialization_strategy is Specialization.EAGER
            self._config.cache.kernels.add(f"{'special' if eager else 'general'}{shape[0]}")
        if self.profiler is not None:
            self.profiler.report_layer_time("network", 1.0)
        return True


class RtxContext(Context):
    """An execution context of TensorRT-RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        return not self.trt.not_capturable


class Engine:
    """A plan that was loaded."""

    trt: Tensorrt

    def __init__(self, plan: bytes) -> None:
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self._tensors = {node.name: (node, Mode.INPUT) for node in self.session.get_inputs()}
        self._tensors |= {node.name: (node, Mode.OUTPUT) for node in self.session.get_outputs()}
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(side if isinstance(side, int) else -1 for side in self._tensors[name][0].shape)

    def get_tensor_dtype(self, name: str) -> type:
        return TYPES[self._tensors[name][0].type]

    def get_tensor_mode(self, name: str) -> Mode:
        return self._tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        rest = self.get_tensor_shape(name)[1:]
        return [(batch, *rest) for batch in (1, 1, LARGEST_BATCH)]

    def create_execution_context(self, runtime_config: RuntimeConfig | None = None) -> Context | None:
        self.trt.calls.append(f"context {runtime_config.cuda_graph_strategy.name if runtime_config else ''}".strip())
        if self.trt.no_context:
            self.trt.say("Requested amount of GPU memory could not be allocated")
            return None
        return self.trt.bound(Context)(self, runtime_config)

    def create_runtime_config(self) -> object:
        """TensorRT has it from 10.11 on, without a cache of kernels."""
        return object()

    def create_engine_inspector(self) -> SimpleNamespace:
        text = '{"Layers": [{"Name": "network", "Metadata": "[ONNX Layer: /model/depth/Conv]"}]}'
        return SimpleNamespace(get_engine_information=lambda kind: text)


class RtxEngine(Engine):
    """A plan of TensorRT-RTX."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


class Runtime:
    """TensorRT itself; to use one that did not start ends the process."""

    trt: Tensorrt
    engine_host_code_allowed = False

    def __init__(self, logger: ILogger) -> None:
        if self.trt.no_start:
            self.trt.say(self.trt.no_start)

    def get_plugin_registry(self) -> None:
        raise AssertionError("asked for plug-ins")

    def deserialize_cuda_engine(self, plan: bytes) -> Engine:
        assert not self.trt.no_start
        self.trt.calls.append(f"deserialize with code {self.engine_host_code_allowed}")
        return self.trt.bound(Engine)(plan)


class RtxRuntime(Runtime):
    """TensorRT-RTX itself."""

    def get_engine_validity(self, plan: bytes) -> tuple[Validity, int]:
        self.trt.calls.append(f"validity on {self.trt.gpu.current}")
        return (Validity.INVALID if self.trt.invalid else Validity.VALID), self.trt.invalid
