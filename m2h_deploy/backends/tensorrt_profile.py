"""Profile a plan with TensorRT's IProfiler. Needs a GPU; follows NVIDIA's documentation and has not been run on one."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from m2h_deploy.backends.base import BackendOptions, LayerTime, Run
from m2h_deploy.backends.tensorrt import TensorRTBackend
from m2h_deploy.backends.tensorrt_api import load_tensorrt
from m2h_deploy.bundle.folder import Bundle

#: Marks the graph's nodes in TensorRT's metadata of a layer.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def profile(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Measure the layers of `runs` runs on a GPU."""
    backend = TensorRTBackend(bundle, dataclasses.replace(options, extra={"cuda_graph": False}))
    try:
        profiler = _profiler(load_tensorrt(bundle.manifest.engine.kind))
        names = layer_names(backend.profile(profiler, runs))
    finally:
        backend.close()
    return [[LayerTime(names.get(name, name), "", value) for name, value in times] for times in profiler.runs]


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []
            self.runs: list[list[tuple[str, float]]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

        def end(self) -> None:
            self.runs.append(self.times)
            self.times = []

    return Profiler()


def layer_names(information: str) -> dict[str, str]:
    """Return the first graph node of each TensorRT layer by the layer's name, from the inspector's JSON.

    A layer without that information keeps its own name.
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
