"""ONNX Runtime sessions on the CPU."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from m2h_deploy.causes import failure


def cpu_session(proto: onnx.ModelProto | bytes, name: str = "the graph") -> ort.InferenceSession:
    """Return a session that computes Q/DQ as written.

    Raises M2HError, which names the graph `name`, where ONNX Runtime does not take it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # The CPU's own integer kernels saturate differently.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        content = proto if isinstance(proto, bytes) else proto.SerializeToString()
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise failure(error, f"ONNX Runtime cannot load {name}") from None
