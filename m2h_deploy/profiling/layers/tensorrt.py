"""TensorRT's IProfiler. Needs a GPU; written to NVIDIA's documentation and not yet run on one."""

from __future__ import annotations

import json
import re
from typing import Any

from m2h_deploy.backends.buffers import TensorSpec, plan_buffers
from m2h_deploy.backends.cuda import Cuda
from m2h_deploy.backends.tensorrt import check_plan, device_index
from m2h_deploy.backends.tensorrt_api import NAMES, load_tensorrt
from m2h_deploy.backends.tensorrt_log import listen
from m2h_deploy.bundle import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.profiling.layers import LayerTime, Run

#: How TensorRT marks the graph's nodes in what it tells of a layer.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def profile(bundle: Bundle, threads: int | None, device: str | None, runs: int) -> list[Run]:
    """Layers of `runs` runs on a GPU. See `profile_layers`."""
    import numpy as np

    flavour = bundle.manifest.engine.kind
    trt = load_tensorrt(flavour)
    logger, _ = listen(flavour)
    plan = bundle.engine_file.read_bytes()
    runtime = trt.Runtime(logger)
    check_plan(trt, runtime, plan, bundle)
    cuda = Cuda(device_index(device))
    try:
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise M2HError(f"{bundle.path}: {NAMES[flavour]} refuses the plan: build it again on this machine")
        context = engine.create_execution_context()
        specs = [
            TensorSpec(
                name,
                tuple(engine.get_tensor_shape(name)),
                np.dtype(trt.nptype(engine.get_tensor_dtype(name))),
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            )
            for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors))
        ]
        placements, size = plan_buffers(specs, 1)
        memory = cuda.allocate(size)
        context.set_input_shape(placements[0].name, placements[0].shape)
        for placement in placements:
            context.set_tensor_address(placement.name, memory + placement.offset)
        profiler = _profiler(trt)
        context.profiler = profiler  # each run reports when it is enqueued
        names = layer_names(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
        result: list[Run] = []
        for _ in range(runs):
            profiler.times = []
            if not context.execute_async_v3(cuda.stream):
                raise M2HError(f"{bundle.path}: {NAMES[flavour]} could not run the plan under its profiler")
            cuda.synchronize()
            result.append([LayerTime(names.get(name, name), "", value) for name, value in profiler.times])
        return result
    finally:
        cuda.close()


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()


def layer_names(information: str) -> dict[str, str]:
    """TensorRT's layers by name with the first node of the graph that each was made from, from the inspector's JSON.

    A layer that does not say keeps its own name.
    """
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError):
        return {}
    names = {}
    for layer in layers:
        if isinstance(layer, dict) and "Name" in layer:
            found = _ONNX_LAYER.search(str(layer.get("Metadata", "")))
            names[str(layer["Name"])] = found[1] if found else str(layer["Name"])
    return names
