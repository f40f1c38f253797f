"""Search for an INT8 policy as a step of a tuning run; every measurement is kept in the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import onnx

from engines.precision.calibration import Bounds, Calibration, CalibrationFrames, measure_ranges, select_frames
from engines.precision.frames import calibration_frames
from engines.precision.quantization import candidates
from engines.precision.search import Losses, SearchResult, Step, macs_by_layer, parts_of, search
from engines.precision.sensitivity import simulate_int8
from engines.tune.frames import TuneFrames
from m2h_deploy.files.journal import Journal
from m2h_deploy.label_spaces.data import map_dataset
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.onnx_graph.info import GraphInfo
from m2h_deploy.onnx_graph.interface import dims_of
from m2h_deploy.onnx_graph.session import cpu_session, run_session
from m2h_deploy.parity import Gates
from m2h_deploy.parity.judge import Interface, Judge
from m2h_deploy.runtime.preprocess import Preprocess


class OutOfTime(Exception):  # noqa: N818 (names the event)
    """The search used up its share of the budget: a later run resumes it."""


@dataclass(frozen=True)
class Found:
    """The result of a search, and the step of it that is used."""

    result: SearchResult

    @property
    def step(self) -> Step:
        """The chosen step, or the one that comes nearest to the gates."""
        return self.result.chosen or min(self.result.steps, key=lambda step: step.worst[1])

    def to_json(self) -> dict[str, Any]:
        """Return the search's record: sensitivity by part, measured steps, which of them are Pareto, the policy."""
        return {
            "alone": [{"part": part.name, "macs": part.macs, "losses": self.result.alone[part.name]}
                      for part in self.result.order],
            "steps": [asdict(step) for step in self.result.steps],
            "pareto": [step.given_back for step in self.result.pareto],
            "within_margin": self.result.chosen is not None,
            "share": self.step.share,
            "policy": {"quantize": list(self.result.policy(self.step).quantize), "keep": []},
        }  # fmt: skip


class PolicySearch:
    """The search for one network on the frames of a tuning run."""

    def __init__(
        self, proto: onnx.ModelProto, info: GraphInfo, frames: TuneFrames, gates: Gates, journal: Journal, seed: int
    ) -> None:
        self._plain, _ = inline_functions(proto)
        self._info, self._frames, self._gates, self._journal, self._seed = info, frames, gates, journal, seed

    def find(self, *, symmetric: bool, deadline: float | None, progress: Callable[[str, float], None]) -> Found:
        """Return the policy for symmetric INT8 (GPUs) or asymmetric (CPUs).

        Raises:
            OutOfTime: `deadline`, of `time.monotonic`, has passed.
        """
        layers = list(self._inputs)
        kind = "symmetric" if symmetric else "asymmetric"

        def measure(chosen: Sequence[str]) -> Losses:
            if deadline is not None and time.monotonic() > deadline:
                raise OutOfTime
            key = f"losses {kind} {','.join(str(layers.index(name)) for name in chosen)}"
            losses: Losses = self._journal.once(key, lambda: self._losses(chosen, symmetric=symmetric))
            return losses

        return Found(search(parts_of(layers, macs_by_layer(self._plain)), measure, progress))

    def _losses(self, layers: Sequence[str], *, symmetric: bool) -> Losses:
        session = cpu_session(simulate_int8(self._plain, layers, self._ranges, symmetric=symmetric))
        return self._judge.losses(lambda image: run_session(session, image))

    @cached_property
    def _inputs(self) -> dict[str, str]:
        return candidates(self._plain)

    @cached_property
    def _size(self) -> tuple[int, int]:
        height, width = dims_of(self._plain.graph.input[0])[2:]
        return height, width  # type: ignore[return-value]

    def check_frames(self) -> None:
        """Raise M2HError if too few of the frames can be calibrated on."""
        _ = self._calibration

    @cached_property
    def _calibration(self) -> CalibrationFrames:
        height, width = self._size
        return select_frames(
            calibration_frames(self._frames.calibration, self._info.normalization, height=height, width=width),
            count=self._frames.count - self._frames.held_out,
            held_out=self._frames.held_out,
            seed=self._seed,
            source=self._frames.calibration.source,
        )

    @cached_property
    def _ranges(self) -> dict[str, Bounds]:
        tensors = tuple(dict.fromkeys(self._inputs.values()))
        return measure_ranges(self._plain, "", tensors, Calibration(self._calibration))

    @cached_property
    def _judge(self) -> Judge:
        session = cpu_session(self._plain)
        tasks = tuple(value.name for value in self._plain.graph.output)
        interface = Interface(
            Preprocess(self._info.normalization, *self._size),
            self._info.classes,
            self._info.depth_range,
            tasks,
            full_labels=self._info.label_resolution == "full",
        )
        data = map_dataset(self._frames.search, self._info.classes, self._info.label_map)
        return Judge(interface, data, range(len(data)), lambda image: run_session(session, image), self._gates)
