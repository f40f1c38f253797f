"""A graph against its float32 original, both on ONNX Runtime's CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from m2h_deploy.numerics import psnr, span_of
from m2h_deploy.onnx_graph.session import cpu_session


class CpuReference:
    """What a float32 graph gives on some frames, computed once, to compare other graphs with."""

    def __init__(self, proto: onnx.ModelProto, frames: Sequence[NDArray[np.float32]]) -> None:
        session = cpu_session(proto)
        self.names = [output.name for output in session.get_outputs()]
        self._frames = tuple(frames)
        self._expected = [_run(session, frame) for frame in frames]
        self._spans = [_span(np.stack(values)) for values in zip(*self._expected, strict=True)]

    def noise(self, proto: onnx.ModelProto) -> dict[str, float]:
        """Mean square error of each output of `proto` over the frames, as a share of the output's span squared."""
        session = cpu_session(proto)
        total = dict.fromkeys(self.names, 0.0)
        for frame, expected in zip(self._frames, self._expected, strict=True):
            for name, span, want, got in zip(self.names, self._spans, expected, _run(session, frame), strict=True):
                square = float(np.mean((want.astype(np.float64) - got) ** 2)) / len(self._frames)
                total[name] += square / span**2
        return total

    def psnr(self, proto: onnx.ModelProto) -> dict[str, float]:
        """Peak signal-to-noise ratio of each output of `proto` in decibels; the peak is the output's span."""
        return {name: psnr(noise, 1.0) for name, noise in self.noise(proto).items()}


def _span(values: NDArray[np.float32]) -> float:
    return span_of(float(values.min()), float(values.max()), float(np.mean(np.square(values, dtype=np.float64))))


def _run(session: ort.InferenceSession, frame: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    value = session.get_inputs()[0]
    half = value.type == "tensor(float16)"
    return session.run(None, {value.name: frame.astype(np.float16) if half else frame})
