"""The arguments of `build_bundle`, and the checks that run before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.options import EngineOptions
from engines.precision.frames import Pictures
from engines.precision.lowering import Lowering
from engines.registry import EngineBuilder
from m2h_deploy.bundle.folder import check_outside
from m2h_deploy.choices import Precision, check_choice
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_writable


@dataclass(frozen=True)
class BuildRequest:
    """A graph, the engine to build from it, and how. Options that the engine or the precision ignores are rejected."""

    source: Path
    engine: EngineBuilder
    precision: str | None
    """None: the graph's own."""
    options: EngineOptions
    lowering: Lowering
    graph: Path | None
    """File to keep the lowered graph in."""

    def __post_init__(self) -> None:
        if not isinstance(self.options, self.engine.options):
            wanted, given = self.engine.options.__name__, type(self.options).__name__
            raise M2HError(f"the engine {self.engine.name} takes {wanted} as options, got {given}")
        if self.precision is not None:
            check_choice("precision", self.precision, Precision)
        self.engine.check_options(self.options, self.precision)
        if self.lowers:
            self.lowering.check(self.precision or "fp32")
        elif self.lowering.given:
            raise M2HError(
                "calibration, policy and types of inputs need a float32 graph and --precision fp16, int8 or fp8"
            )
        elif self.graph is not None:
            raise M2HError("only a lowered graph is kept: choose fp16, int8 or fp8, or leave the file out")

    @property
    def lowers(self) -> bool:
        """True if a precision below float32 is requested; the graph may have it already."""
        return self.precision in ("fp16", "int8", "fp8")

    def pictures(self) -> Pictures | None:
        """Open the pictures to calibrate on, None if not needed. Raises M2HError if they are missing or too few."""
        return self.lowering.pictures(self.precision or "fp32") if self.lowers else None

    def check_graph_place(self, out_dir: Path | None) -> None:
        """Raise M2HError if the lowered graph cannot be written; `out_dir` is the bundle's folder, if there is one."""
        if self.graph is None:
            return
        check_writable(self.graph)
        if self.graph.resolve() == self.source.resolve():
            raise M2HError(f"the lowered graph would replace its source {self.graph}: give another file")
        if out_dir is not None:
            check_outside(out_dir, self.graph)
