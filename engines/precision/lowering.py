"""Lower a float32 graph to FP16, INT8 or FP8, and record how in the lowered file (see `Lowered`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import shape_inference

from engines.precision.frames import Pictures, calibration_frames, open_pictures
from engines.precision.raw_pixels import put_network, take_network
from engines.precision.rounding import round_values
from m2h_deploy.bundle.manifest import CalibrationInfo, EngineInfo, InputSpec, LoweringInfo, SelfTest
from m2h_deploy.bundle.self_test import make_self_test, pattern, widen_tolerances
from m2h_deploy.choices import Calibrator, FloatType, check_choice
from m2h_deploy.errors import M2HError, install_extra
from m2h_deploy.onnx_graph.files import read_onnx
from m2h_deploy.onnx_graph.functions import inline_functions
from m2h_deploy.onnx_graph.info import GraphInfo, Lowered, is_sensor_graph

if TYPE_CHECKING:
    from engines.options import Tool
    from engines.precision.convert import PrecisionReport
    from engines.precision.quantization import QuantPolicy


@dataclass(frozen=True)
class Lowering:
    """Options of the conversion to FP16, INT8 or FP8, see `engines.precision.convert`; None takes the default."""

    frames: str | Pictures | None = None
    """Calibration frames: a folder, a video, or NYUv2. INT8 and FP8 need them; FP16 uses them to
    find the nodes that stay float32, and to measure its PSNR."""
    count: int | None = None
    """Number of frames to calibrate INT8 or FP8 on; default 64."""
    held_out: int = 2
    seed: int | None = None
    """Seed of the choice of frames; default 0."""
    method: Calibrator | None = None
    """Calibrator of INT8 ranges; default max, which FP8 always uses."""
    policy: QuantPolicy | None = None
    min_psnr: float | None = None
    io: FloatType = "fp32"
    speed: bool = False
    """Compare the speed of the lowered engine with float32, if this machine can run it, and record the ratio in the
    manifest's `speed`."""

    @property
    def given(self) -> bool:
        """True if an option is set that only a float32 graph can use."""
        return replace(self, speed=False) != Lowering()

    def wanted(self, precision: str) -> int:
        """Return the number of frames to calibrate on; FP16 measures ranges on one."""
        return (64 if self.count is None else self.count) if precision in ("int8", "fp8") else 1

    def check(self, precision: str) -> None:
        """Raise M2HError on options that have no effect in `precision`, or only together with a missing one."""
        quantized = {
            "number of calibration frames": self.count,
            "policy": self.policy,
            "least PSNR": self.min_psnr,
        }
        for what, value in quantized.items():
            if value is not None and precision not in ("int8", "fp8"):
                raise M2HError(f"the {what} has no effect in {precision}: leave it out, or choose int8 or fp8")
        if self.method is not None and precision != "int8":
            raise M2HError(f"the calibrator has no effect in {precision}: leave it out, or choose int8")
        if self.policy is not None and self.policy.weights_only and precision == "fp8":
            raise M2HError("a policy with weights_only applies to int8: leave it out, or choose int8")
        if self.method is not None:
            check_choice("calibrator", self.method, Calibrator)
        check_choice("io", self.io, FloatType)
        if self.policy is not None and self.policy.weights_only and (self.method or self.min_psnr) is not None:
            raise M2HError("a policy with weights_only needs no ranges: leave calibrator and least PSNR out")
        if self.seed is not None and self.frames is None:
            raise M2HError("the seed chooses calibration frames: give --calibration too")

    def pictures(self, precision: str) -> Pictures | None:
        """Open the pictures to calibrate on without reading them. Raises M2HError if there are too few."""
        if self.frames is None:
            return None
        if isinstance(self.frames, Pictures):
            return self.frames
        return open_pictures(self.frames, self.wanted(precision) + self.held_out)


@dataclass(frozen=True)
class Float32Graph:
    """A graph to lower: its file, its metadata and its input specification."""

    file: Path
    info: GraphInfo
    spec: InputSpec


def lower(
    source: Float32Graph, target: Path, precision: str, lowering: Lowering, pictures: Pictures | None, tool: Tool
) -> None:
    """Write `source` in `precision` to `target` with a record of the lowering; `pictures` are those of `lowering`.

    `tool` is the one that lowers for the engine.
    """
    if tool == "modelopt":
        from engines.precision.modelopt import require_modelopt

        require_modelopt()
    expected = _run_on_cpu(read_onnx(source.file), source.spec, source.file)
    report = _convert(source, target, precision, lowering, pictures, tool)
    proto = read_onnx(target)
    test = make_self_test(expected, _run_on_cpu(proto, source.spec, target))
    record = Lowered(self_test=test, lowering=_lowering_info(report), calibration=_calibration_info(report))
    replace(GraphInfo.read(proto, target), lowered=record).write(proto)
    onnx.save(proto, target)


def _convert(
    source: Float32Graph, target: Path, precision: str, lowering: Lowering, pictures: Pictures | None, tool: Tool
) -> PrecisionReport:
    from engines.precision.calibration import Calibration, select_frames
    from engines.precision.convert import to_fp8, to_fp16, to_int8
    from m2h_deploy.files.cache import user_cache_folder

    frames = None
    if pictures is not None:
        info = source.info
        width, height = info.sensor.network if info.sensor else (source.spec.width, source.spec.height)
        frames = select_frames(
            calibration_frames(pictures, info.normalization, height=height, width=width),
            count=lowering.wanted(precision),
            held_out=lowering.held_out,
            seed=lowering.seed or 0,
            source=pictures.source,
        )
    if precision == "fp16":
        return to_fp16(source.file, target, io=lowering.io, frames=frames)
    assert frames is not None
    # Cached by the digests of graph and frames, so that another policy or engine need not measure again.
    cache = user_cache_folder("calibration")
    calibration = Calibration(frames, method=lowering.method or "max", cache=cache)  # type: ignore[arg-type]
    options = {"policy": lowering.policy, "min_psnr": lowering.min_psnr, "io": lowering.io}
    if precision == "fp8":
        return to_fp8(source.file, target, calibration=calibration, **options)  # type: ignore[arg-type]
    return to_int8(source.file, target, calibration=calibration, tool=tool, **options)  # type: ignore[arg-type]


def _lowering_info(report: PrecisionReport) -> LoweringInfo:
    return LoweringInfo(
        psnr=report.psnr,
        float32_nodes=len(report.islands),
        int8_layers=len(report.quantized) if report.precision == "int8" else 0,
        fp8_layers=len(report.quantized) if report.precision == "fp8" else 0,
        weights_beyond_fp16=tuple(dict.fromkeys(risk.node for risk in report.risks)),
    )


def _calibration_info(report: PrecisionReport) -> CalibrationInfo | None:
    record = report.calibration
    if record is None:
        return None
    return CalibrationInfo(
        method=record.method, frames=record.frames, seed=record.seed, frames_sha256=record.frames_sha256
    )


def self_test_of(proto: onnx.ModelProto, path: Path, precision: str, spec: InputSpec) -> SelfTest:
    """Make the self-test of a graph that has none from its own outputs on ONNX Runtime's CPU.

    Raises:
        M2HError: ONNX Runtime is not installed, or the graph gives NaN or infinity.
    """
    outputs = _run_on_cpu(proto, spec, path)
    if precision == "fp32":
        return make_self_test(outputs)
    return make_self_test(outputs, outputs).model_copy(update={"reference": "lowered graph"})


def with_rounding(test: SelfTest, proto: onnx.ModelProto, path: Path, spec: InputSpec, info: EngineInfo) -> SelfTest:
    """Widen the tolerances of `test` for an engine that rounds more than the graph `proto` does.

    Only OpenVINO does (`inference_precision`). If ONNX Runtime is not installed, `test` is returned unchanged: that
    happens only with an explicit hint.
    """
    rounding = info.options.get("inference_precision", "f32")
    if info.precision == "fp32" or rounding == "f32" or find_spec("onnxruntime") is None:
        return test
    plain, _ = inline_functions(take_network(proto) if is_sensor_graph(proto) else proto)
    rounded = round_values(shape_inference.infer_shapes(plain), rounding)
    outputs = _run_on_cpu(put_network(proto, rounded) if is_sensor_graph(proto) else rounded, spec, path)
    return widen_tolerances(test, outputs)


def _run_on_cpu(proto: onnx.ModelProto, spec: InputSpec, path: Path) -> dict[str, NDArray[Any]]:
    """Run the graph of the file `path` on the self-test's input, without rounding that the graph does not specify."""
    try:
        from m2h_deploy.onnx_graph.session import cpu_session, run_session
    except ModuleNotFoundError:
        raise M2HError(
            f"{path} has no self-test, and making one needs ONNX Runtime: {install_extra('onnxruntime')}, or lower "
            "the graph where that is installed (build --precision fp16 --graph FILE.onnx writes one into the file)"
        ) from None
    outputs = run_session(cpu_session(proto, path), pattern(spec), path)
    bad = [name for name, values in outputs.items() if not np.isfinite(values).all()]
    if bad:
        raise M2HError(f"{path} gives NaN or infinity in {', '.join(bad)}: its weights are damaged: export it again")
    return outputs
