"""OpenVINO's performance counters, read after every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from m2h_deploy.backends import BackendOptions
from m2h_deploy.backends.openvino import compile_ir, reason
from m2h_deploy.bundle.folder import Bundle
from m2h_deploy.errors import M2HError
from m2h_deploy.profiling.layers import LayerTime, Run


def profile(bundle: Bundle, options: BackendOptions, runs: int) -> list[Run]:
    """Layers of `runs` runs. See `profile_layers`."""
    compiled, _ = compile_ir(bundle, options, {"PERF_COUNT": True})
    try:
        request = compiled.create_infer_request()
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
