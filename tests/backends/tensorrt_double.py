"""A double of TensorRT's Python module whose plans are ONNX files, run by ONNX Runtime on the double of CUDA."""

from __future__ import annotations

import enum
from types import SimpleNamespace

import numpy as np
import onnxruntime

from tests.backends.cuda_double import Gpu, read, write

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class Faults:
    """What goes wrong."""

    runtime: str = ""
    """TensorRT's error when its runtime starts."""
    no_context = False
    refuses_address = False
    execution: str = ""
    captures_badly = False
    """An error is logged while a graph is captured."""
    not_capturable = False
    invalid = 0
    """Diagnostics of the plan's validity."""


def make_tensorrt(gpu: Gpu, faults: Faults, *, rtx: bool, largest_batch: int = 4) -> SimpleNamespace:
    """Return the module; `calls` records what was asked of it."""
    calls: list[str] = []

    class ILogger:
        ERROR = 1

    class IProfiler:
        pass

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

    class Cache:
        def __init__(self) -> None:
            self.kernels: set[str] = set()

        def deserialize(self, blob: bytes) -> bool:
            self.kernels = set(blob.decode().split(","))
            return True

        def serialize(self) -> bytes:
            return ",".join(sorted(self.kernels)).encode()

    class Config:
        cuda_graph_strategy = Strategy.DISABLED
        dynamic_shapes_kernel_specialization_strategy = Specialization.LAZY
        cache: Cache | None = None

        def create_runtime_cache(self) -> Cache:
            return Cache()

        def set_runtime_cache(self, cache: Cache) -> bool:
            self.cache = cache
            return True

    class Context:
        profiler = None

        def __init__(self, engine: Engine, config: Config | None) -> None:
            self._engine, self._config = engine, config
            self._addresses: dict[str, int] = {}
            self._shape = engine.session.get_inputs()[0].shape

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self._shape = shape
            return 1 <= shape[0] <= largest_batch

        def set_tensor_address(self, name: str, memory: int) -> bool:
            if faults.refuses_address or memory % 256 or not gpu.holds(memory, 1):
                engine_says(f"{name} has an address that is refused")
                return False
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            stream = gpu.streams[stream_handle]
            if faults.execution:
                engine_says(faults.execution)
                return False
            if stream.capturing is not None and faults.captures_badly:
                engine_says("a kernel cannot be captured")
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

        def is_stream_capturable(self, stream: int) -> bool:
            return not faults.not_capturable

    class Engine:
        def __init__(self, plan: bytes) -> None:
            self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
            self._tensors = {node.name: (node, Mode.INPUT) for node in self.session.get_inputs()}
            self._tensors |= {node.name: (node, Mode.OUTPUT) for node in self.session.get_outputs()}
            self.num_io_tensors = len(self._tensors)
            self.contexts: list[Context] = []

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
            return [(batch, *rest) for batch in (1, 1, largest_batch)]

        def create_execution_context(self, runtime_config: Config | None = None) -> Context | None:
            calls.append(f"context {runtime_config.cuda_graph_strategy.name if runtime_config else ''}".strip())
            if faults.no_context:
                engine_says("Requested amount of GPU memory could not be allocated")
                return None
            return Context(self, runtime_config)

        def create_engine_inspector(self) -> SimpleNamespace:
            text = '{"Layers": [{"Name": "network", "Metadata": "[ONNX Layer: /model/depth/Conv]"}]}'
            return SimpleNamespace(get_engine_information=lambda kind: text)

        if rtx:

            def create_runtime_config(self) -> Config:
                return Config()

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: ILogger) -> None:
            self._logger = logger
            if faults.runtime:
                engine_says(faults.runtime)

        def get_plugin_registry(self) -> None:
            raise AssertionError("the registry of a TensorRT that did not start ends the process")

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            assert not faults.runtime, "a TensorRT that did not start ends the process"
            calls.append(f"deserialize with code {self.engine_host_code_allowed}")
            return Engine(plan)

        if rtx:

            def get_engine_validity(self, plan: bytes) -> tuple[Validity, int]:
                calls.append(f"validity on {gpu.current}")
                return (Validity.INVALID if faults.invalid else Validity.VALID), faults.invalid

    loggers: list[ILogger] = []

    def engine_says(text: str) -> None:
        for logger in loggers:
            logger.log(ILogger.ERROR, text)

    class Logger(ILogger):
        def __init__(self) -> None:
            loggers.append(self)

    module = SimpleNamespace(
        __version__="10.16.1.11",
        ILogger=Logger,
        IProfiler=IProfiler,
        Runtime=Runtime,
        TensorIOMode=Mode,
        LayerInformationFormat=SimpleNamespace(JSON="json"),
        nptype=lambda dtype: dtype,
        calls=calls,
        members={"IExecutionContext": Context, "ICudaEngine": Engine, "Runtime": Runtime},
    )
    if rtx:
        module.__version__ = "1.7.1.116"
        module.CudaGraphStrategy, module.EngineValidity = Strategy, Validity
        module.DynamicShapesKernelSpecializationStrategy = Specialization
        module.EngineInvalidityDiagnostics = Diagnostics
        module.members |= {"IRuntimeConfig": Config, "IRuntimeCache": Cache}
    else:
        del Context.is_stream_capturable
    return module
