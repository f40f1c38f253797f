"""Compare a graph with the float32 graph that it was made from, both on ONNX Runtime's CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from m2h_deploy.numerics import psnr, span_of
from m2h_deploy.onnx_graph.session import cpu_session, run_session


class CpuReference:
    """Outputs of a float32 graph on some frames, computed once to compare other graphs with."""

    def __init__(self, proto: onnx.ModelProto, frames: Sequence[NDArray[np.float32]]) -> None:
        session = cpu_session(proto)
        self.names = [output.name for output in session.get_outputs()]
        self._frames = tuple(frames)
        self._reference = [run_session(session, frame) for frame in frames]
        self._spans = {name: _span(np.stack([values[name] for values in self._reference])) for name in self.names}

    def noise(self, proto: onnx.ModelProto) -> dict[str, float]:
        """Return the mean square error of each output of `proto`, as a share of the output's span squared."""
        session = cpu_session(proto)
        total = dict.fromkeys(self.names, 0.0)
        for frame, reference in zip(self._frames, self._reference, strict=True):
            engine = run_session(session, frame, outputs=self.names)
            for name, span in self._spans.items():
                square = float(np.mean((reference[name].astype(np.float64) - engine[name]) ** 2)) / len(self._frames)
                total[name] += square / span**2
        return total

    def psnr(self, proto: onnx.ModelProto) -> dict[str, float]:
        """Return the peak signal-to-noise ratio of each output of `proto` in dB; the peak is the output's span."""
        return {name: psnr(noise, 1.0) for name, noise in self.noise(proto).items()}


def _span(values: NDArray[np.float32]) -> float:
    return span_of(float(values.min()), float(values.max()), float(np.mean(np.square(values, dtype=np.float64))))
