"""ONNX Runtime: the optimised graph as an engine file."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime as ort

from m2h_deploy.bundle import EngineInfo
from m2h_deploy.errors import M2HError

ENGINE_FILE = "model.onnx"


def build_onnxruntime(model: Path, folder: Path, *, precision: str = "fp32", threads: int | None = None) -> EngineInfo:
    """Optimise the graph of `model` and keep it in `folder`.

    The level is `extended`: fused attention, GELU and norms, valid on every CPU. The layout changes of level `all`
    (NCHWc) depend on the CPU's vector width, so they are left to the session on the device, which makes them when it
    loads the file.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = os.fspath(folder / ENGINE_FILE)
    try:
        ort.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise M2HError(f"ONNX Runtime cannot load {model}: {str(error).splitlines()[0]}") from None
    return EngineInfo(
        kind="onnxruntime",
        version=ort.__version__,
        precision=precision,  # type: ignore[arg-type]
        file=ENGINE_FILE,
        options={"provider": "cpu"} | ({"threads": threads} if threads else {}),
    )
