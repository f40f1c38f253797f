"""OpenVINO's performance counters, read after every run."""

from __future__ import annotations

from typing import Any

import numpy as np

from m2h_deploy.backends.openvino import read_ir, reason
from m2h_deploy.bundle import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.profiling.layers import LayerTime, Run


def profile(bundle: Bundle, threads: int | None, device: str | None, runs: int) -> list[Run]:
    """Layers of `runs` runs. See `profile_layers`."""
    import openvino as ov

    engine = bundle.manifest.engine.options
    where = (device or str(engine.get("device", "CPU"))).upper()
    properties: dict[str, Any] = {"PERF_COUNT": True, "PERFORMANCE_HINT": engine.get("performance_hint", "LATENCY")}
    if "inference_precision" in engine:
        properties["INFERENCE_PRECISION_HINT"] = engine["inference_precision"]
    wanted = threads or engine.get("threads")
    if wanted and where == "CPU":
        properties["INFERENCE_NUM_THREADS"] = wanted
    core = ov.Core()
    try:
        request = core.compile_model(read_ir(bundle, core), where, properties).create_infer_request()
        port = request.model_inputs[0]
        shape = [1 if side.is_dynamic else side.get_length() for side in port.partial_shape]
        request.set_input_tensor(ov.Tensor(np.zeros(shape, port.element_type.to_dtype())))
        result: list[Run] = []
        for _ in range(runs):
            request.infer()
            result.append(_layers(request.profiling_info))
    except RuntimeError as error:
        raise M2HError(f"{bundle.path}: cannot be profiled: {reason(error)}") from None
    return result


def _layers(info: Any) -> list[LayerTime]:
    """What was executed; nodes that were fused into others or folded took no time of their own."""
    return [
        LayerTime(node.node_name, node.node_type, node.real_time.total_seconds() * 1000)
        for node in info
        if node.status == node.Status.EXECUTED
    ]
