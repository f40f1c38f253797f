"""Open and run ONNX Runtime sessions on the CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from m2h_deploy.causes import failure

if TYPE_CHECKING:
    import onnx

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


def cpu_session(
    model: onnx.ModelProto | bytes | str,
    name: str | os.PathLike[str] = "the graph",
    *,
    optimize: Literal["all", "basic", "none"] = "all",
    threads: int | None = None,
    arena: bool = True,
    in_order: bool = False,
) -> ort.InferenceSession:
    """Open a session that computes Q/DQ nodes as written.

    Args:
        model: The graph, or the path of its file.
        name: Name of the graph in errors.
        optimize: Level of graph optimization.
        threads: CPU threads, which then do not spin: another engine shares the cores.
        arena: Whether memory is kept from run to run.
        in_order: Whether nodes run in the graph's order, so that a value is freed after its last use in that order.

    Raises:
        M2HError: ONNX Runtime rejects the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = _LEVELS[optimize]
    options.enable_cpu_mem_arena = arena
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The CPU's own integer kernels saturate differently.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Seen with 1.32: this optimizer removes a Relu before QuantizeLinear to FP8, which has negative values too.
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ReluQuantRewrite")
    try:
        content = model if isinstance(model, (str, bytes)) else model.SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise failure(error, f"ONNX Runtime cannot load {os.fspath(name)}") from None


def run_session(
    session: ort.InferenceSession,
    image: NDArray[Any],
    name: str | os.PathLike[str] = "the graph",
    outputs: Sequence[str] | None = None,
) -> dict[str, NDArray[Any]]:
    """Run a graph of one input on `image`, cast to the input's type, and return `outputs`, all by default.

    Raises:
        M2HError: ONNX Runtime fails on the graph, which the error calls `name`.
    """
    value = session.get_inputs()[0]
    dtype = {"tensor(float16)": np.float16, "tensor(uint8)": np.uint8}.get(value.type, np.float32)
    names = [node.name for node in session.get_outputs()] if outputs is None else list(outputs)
    try:
        values = session.run(names, {value.name: image.astype(dtype, copy=False)})
    except Exception as error:  # as above
        raise failure(error, f"ONNX Runtime cannot run {os.fspath(name)}") from None
    return dict(zip(names, values, strict=True))
