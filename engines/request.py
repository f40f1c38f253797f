"""The options of `build_bundle`, and the checks that run before any work."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from engines.lowered import Lowering
from engines.openvino import Hint, check_hint, load_openvino
from engines.precision.frames import Pictures
from engines.tensorrt import BuildOptions, check_flavor, check_options, why_not_here
from m2h_deploy.backends import EXTRAS, BackendOptions
from m2h_deploy.bundle.manifest import check_outside
from m2h_deploy.errors import M2HError, missing_extra
from m2h_deploy.files.atomic import check_writable

ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "int8")
NEED_GPU = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class BuildRequest:
    """A graph, the engine to build of it, and how. Options that the engine or the precision ignores are refused."""

    source: Path
    engine: str = "onnxruntime"
    precision: str | None = None
    """None: as the graph is."""
    threads: int | None = None
    affinity: tuple[int, ...] = ()
    provider: str = "cpu"
    hint: Hint | None = None
    lowering: Lowering = field(default_factory=Lowering)
    tensorrt: BuildOptions = field(default_factory=BuildOptions)
    graph: Path | None = None
    """File to keep the lowered graph in."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise M2HError(f"engine '{self.engine}': choose one of {', '.join(ENGINES)}")
        if self.precision not in (None, *PRECISIONS):
            raise M2HError(f"precision '{self.precision}': choose one of {', '.join(PRECISIONS)}")
        BackendOptions(threads=self.threads)  # refuses an invalid number of threads
        self._refuse_idle_options()
        if self.engine in NEED_GPU:
            check_options(self.engine, self.tensorrt)
        if self.lowers:
            self.lowering.check(self.precision or "fp32")

    @property
    def lowers(self) -> bool:
        """Whether the graph is to be FP16 or INT8; it may be so already."""
        return self.precision in ("fp16", "int8")

    def _refuse_idle_options(self) -> None:
        gpu = self.engine in NEED_GPU
        idle = {
            "a number of threads": self.threads is not None and gpu,
            "the affinity of threads": bool(self.affinity) and gpu,
            f"the provider {self.provider}": self.provider != "cpu" and self.engine != "onnxruntime",
            f"the hint {self.hint}": self.hint is not None and self.engine != "openvino",
            **{f"TensorRT's option {name}": not gpu for name in _given(self.tensorrt)},
        }
        for what in (what for what, given in idle.items() if given):
            raise M2HError(f"{what} does not apply to the engine {self.engine}: leave it out, or choose another engine")
        if not self.lowers and self.lowering != Lowering():
            raise M2HError("calibration, policy and types of inputs do not apply to fp32: choose fp16 or int8")
        if not self.lowers and self.graph is not None:
            raise M2HError("only a lowered graph is kept: choose fp16 or int8, or leave the file out")

    def pictures(self) -> Pictures | None:
        """The pictures to calibrate on, where there are to be any. Raises M2HError where they are not there."""
        return self.lowering.pictures(self.precision or "fp32") if self.lowers else None

    def check_engine(self) -> None:
        """Raises M2HError where this machine cannot build the engine."""
        if self.engine == "onnxruntime":
            try:
                from engines.onnxruntime import check_provider
            except ModuleNotFoundError:
                raise missing_extra("onnxruntime", EXTRAS[self.engine], "the engine onnxruntime") from None
            check_provider(self.provider)
        elif self.engine == "openvino":
            load_openvino()
            if self.precision is not None:
                check_hint(self.precision, self.hint)
        else:
            reason = why_not_here(self.engine)
            if reason is not None:
                raise M2HError(reason)
            check_flavor(self.engine, self.tensorrt)

    def check_graph_place(self, out_dir: Path | None) -> None:
        """Raises M2HError where the lowered graph cannot be kept; `out_dir` is the bundle's folder, if there is one."""
        if self.graph is None:
            return
        check_writable(self.graph)
        if self.graph.resolve() == self.source.resolve():
            raise M2HError(f"the lowered graph would replace its source {self.graph}: give another file")
        if out_dir is not None:
            check_outside(out_dir, self.graph)


def _given(options: BuildOptions) -> list[str]:
    """Names of the options that are not at their defaults."""
    defaults = BuildOptions()
    names = (field.name for field in fields(options))
    return [name for name in names if getattr(options, name) != getattr(defaults, name)]
