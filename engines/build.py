"""`build_bundle`: an exported ONNX file to a bundle that says and proves what it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from engines.calibration import Calibration, select_frames
from engines.frames import calibration_frames
from engines.graph import ModelCard, default_opset, load_graph, read_card
from engines.onnxruntime import build_onnxruntime
from engines.openvino import Hint, build_openvino
from engines.precision import PrecisionReport, to_fp16, to_int8
from engines.quantization import QuantPolicy
from engines.tensorrt import BuildOptions, build_tensorrt
from m2h_deploy import __version__
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.backends.cache import user_cache_folder
from m2h_deploy.backends.cuda import capability_here, missing_gpu
from m2h_deploy.bundle import (
    Bundle,
    CalibrationInfo,
    Classes,
    EngineInfo,
    InputSpec,
    LoweringInfo,
    Manifest,
    ModelInfo,
    OutputSpec,
    SensorInfo,
    file_sha256,
    load_bundle,
    new_bundle_folder,
    write_manifest,
)
from m2h_deploy.data.classes import CITYSCAPES_CLASSES, NYU40_CLASSES, palette
from m2h_deploy.errors import M2HError
from m2h_deploy.files import write_bytes
from m2h_deploy.preprocess import PRESETS
from m2h_deploy.selftest import check_self_test, make_self_test, pattern

ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "int8")
_NEED_GPU = ("tensorrt", "tensorrt-rtx")

_OUTPUTS = {
    "depth": ("metric depth along the optical axis", "m"),
    "labels": ("class index", "1"),
    "semantics": ("class logits; the largest is the class", "1"),
    "normals": ("surface normal, x left, y up, z towards the camera", "unit vector"),
    "edges": ("boundary logit; its sigmoid is the probability", "1"),
}


#: Types of a sensor graph's outputs.
_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16",
}


@dataclass(frozen=True)
class Lowering:
    """How a graph leaves float32; see `engines.precision`."""

    frames: str | None = None
    """Calibration frames: a folder, a video, or NYUv2. INT8 needs them; FP16 is only measured on them."""
    count: int = 64
    held_out: int = 2
    seed: int = 0
    method: str = "max"
    policy: QuantPolicy | None = None
    min_psnr: float | None = None
    io: Literal["fp32", "fp16"] = "fp32"


def build_bundle(
    onnx_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    precision: str = "fp32",
    threads: int | None = None,
    affinity: Sequence[int] = (),
    provider: str = "cpu",
    hint: Hint | None = None,
    lowering: Lowering | None = None,
    tensorrt: BuildOptions | None = None,
    graph: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Bundle:
    """Build an engine from an exported ONNX file and put it into a bundle at `out_dir`.

    FP16 and INT8 are made in the graph first (`lowering`), and that graph is compiled; `graph` keeps it, to look into
    or to compile elsewhere. `threads` and `affinity` (processors that those threads stay on) are recorded as the
    defaults of an engine on the CPU, `provider` is ONNX Runtime's, `hint` OpenVINO's. `progress` is told when the input
    was accepted and the work begins. The bundle holds a golden self-
    test made from the float32 graph on ONNX Runtime's CPU; where the engine runs on this machine it has passed it
    (TensorRT needs a GPU for that). An older bundle at `out_dir` is replaced only when the new one is whole. Raises
    M2HError on bad input, CheckFailed when the engine's numbers are wrong.
    """
    if engine not in ENGINES:
        raise M2HError(f"engine '{engine}': choose one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise M2HError(f"precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    BackendOptions(threads=threads)  # refuses a number of threads that is none
    _refuse_idle_options(engine, precision, threads, affinity, provider, hint, lowering, tensorrt)
    source = Path(onnx_path)
    proto = load_graph(source)
    card = read_card(proto, source)
    spec = _input_spec(proto, card)
    _check_sensor(proto, card, engine, source)
    if progress is not None:
        progress(f"building {engine} in {precision}")
    with new_bundle_folder(out_dir) as folder, tempfile.TemporaryDirectory(prefix="m2h-build-") as scratch:
        model, report = source, None
        if precision != "fp32":
            model = Path(scratch) / "model.onnx"
            report = _lower(source, model, precision, lowering or Lowering(), card, spec)
        if graph is not None:
            write_bytes(graph, model.read_bytes())
        if engine == "onnxruntime":
            info = build_onnxruntime(model, folder, precision=precision, threads=threads, provider=provider)
        elif engine == "openvino":
            info = build_openvino(model, folder, precision=precision, threads=threads, hint=hint)
        else:
            info = build_tensorrt(model, folder, flavour=engine, precision=precision, options=tensorrt)
        if affinity:
            info = info.model_copy(update={"options": {**info.options, "affinity": list(affinity)}})
        write_manifest(folder, _manifest(proto, card, spec, info, report, source, folder))
        if _runs_here(info):
            _prove(folder, tensorrt.plugins if tensorrt is not None else ())
    return load_bundle(out_dir)


def _refuse_idle_options(
    engine: str,
    precision: str,
    threads: int | None,
    affinity: Sequence[int],
    provider: str,
    hint: str | None,
    lowering: Lowering | None,
    tensorrt: BuildOptions | None,
) -> None:
    """Raises M2HError for an option that this engine or precision would not look at."""
    gpu = engine in _NEED_GPU
    idle = {
        "a number of threads": threads is not None and gpu,
        "the affinity of threads": bool(affinity) and gpu,
        f"the provider {provider}": provider != "cpu" and engine != "onnxruntime",
        f"the hint {hint}": hint is not None and engine != "openvino",
        "an option of TensorRT": tensorrt not in (None, BuildOptions()) and not gpu,
    }
    for what in (what for what, given in idle.items() if given):
        raise M2HError(f"{what} means nothing to {engine}: leave it out, or choose the engine that has it")
    if precision == "fp32" and lowering not in (None, Lowering()):
        raise M2HError("calibration, policy and types of inputs mean nothing in fp32: choose fp16 or int8")


def _lower(
    source: Path, target: Path, precision: str, lowering: Lowering, card: ModelCard, spec: InputSpec
) -> PrecisionReport:
    """Write the graph of `source` in `precision` to `target`."""
    if precision == "int8" and lowering.frames is None:
        raise M2HError("int8 needs calibration frames: give --calibration a folder, a video, or NYUv2")
    frames = None
    if lowering.frames is not None:
        width, height = card.sensor.network if card.sensor else (spec.width, spec.height)
        pictures = calibration_frames(lowering.frames, preset=card.preset, height=height, width=width)
        count = lowering.count if precision == "int8" else 1
        frames = select_frames(
            pictures, count=count, held_out=lowering.held_out, seed=lowering.seed, source=lowering.frames
        )
    if precision == "fp16":
        return to_fp16(source, target, io=lowering.io, frames=frames)
    assert frames is not None
    # Kept by the digests of graph and frames, so that another policy or another engine need not measure again.
    cache = user_cache_folder("calibration")
    calibration = Calibration(frames, method=lowering.method, cache=cache)  # type: ignore[arg-type]
    return to_int8(
        source, target, calibration=calibration, policy=lowering.policy, min_psnr=lowering.min_psnr, io=lowering.io
    )


def _manifest(
    proto: onnx.ModelProto,
    card: ModelCard,
    spec: InputSpec,
    info: EngineInfo,
    report: PrecisionReport | None,
    source: Path,
    folder: Path,
) -> Manifest:
    dtype = "float16" if report is not None and report.io == "fp16" else "float32"
    return Manifest(
        created_by=f"m2h-deploy {__version__}",
        model=ModelInfo(
            variant=card.variant,
            weights_sha256=card.weights_sha256,
            config=card.config,
            form=card.form,
            windows=card.windows,
            opset=default_opset(proto),
            onnx_sha256=file_sha256(source),
        ),
        input=spec if card.sensor else spec.model_copy(update={"dtype": dtype}),
        sensor=_sensor_info(card),
        outputs=tuple(_output_spec(value, dtype, card) for value in proto.graph.output),
        depth_range=(card.config["min_depth"], card.config["max_depth"]),
        classes=class_list(card.config["num_classes"]),
        engine=info,
        lowering=_lowering_info(report),
        calibration=_calibration_info(report),
        self_test=make_self_test(_run_reference(source, spec), info.precision),
        files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    )


def _lowering_info(report: PrecisionReport | None) -> LoweringInfo | None:
    if report is None:
        return None
    return LoweringInfo(
        psnr=report.psnr,
        float32_nodes=len(report.islands),
        int8_layers=len(report.quantised),
        weights_beyond_fp16=tuple(dict.fromkeys(risk.node for risk in report.risks)),
    )


def _calibration_info(report: PrecisionReport | None) -> CalibrationInfo | None:
    if report is None or report.calibration is None:
        return None
    record = report.calibration
    return CalibrationInfo(
        method=record.method, frames=record.frames, seed=record.seed, frames_sha256=record.frames_sha256
    )


def _input_spec(proto: onnx.ModelProto, card: ModelCard) -> InputSpec:
    value = proto.graph.input[0]
    batch, *sides = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    normalisation = PRESETS[card.preset]
    raw: dict[str, Any] = {}
    width, height = card.sensor.camera if card.sensor else (sides[-1], sides[-2])
    if card.sensor:
        nv12 = card.sensor.format == "nv12"
        raw = {"dtype": "uint8", "layout": "NV12" if nv12 else "NHWC", "color": "YCbCr" if nv12 else "BGR"}
    return InputSpec(
        name=value.name,
        batch=batch or None,
        height=height,
        width=width,
        mean=normalisation.mean,
        std=normalisation.std,
        **raw,
    )


def _sensor_info(card: ModelCard) -> SensorInfo | None:
    if card.sensor is None:
        return None
    width, height = card.sensor.network
    return SensorInfo(format=card.sensor.format, network_height=height, network_width=width)


def _check_sensor(proto: onnx.ModelProto, card: ModelCard, engine: str, source: Path) -> None:
    """Raises M2HError where an engine lacks a type of the sensor graph."""
    kinds = {value.type.tensor_type.elem_type for value in proto.graph.output}
    if card.sensor and onnx.TensorProto.UINT16 in kinds and engine in _NEED_GPU:
        raise M2HError(f"{source} gives depth as uint16, which TensorRT lacks: export it with --depth float32")


def _output_spec(value: onnx.ValueInfoProto, dtype: str, card: ModelCard) -> OutputSpec:
    meaning, unit = _OUTPUTS[value.name]
    if card.sensor is not None:
        if value.name == "edges":
            meaning = "probability of a boundary"
        kind = value.type.tensor_type.elem_type
        dtype = _DTYPES[kind]
        unit = "mm" if kind == onnx.TensorProto.UINT16 else unit
    shape = tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
    return OutputSpec(name=value.name, meaning=meaning, unit=unit, dtype=dtype, shape=shape)  # type: ignore[arg-type]


def class_list(count: int) -> Classes:
    """Names and colours for a network of `count` classes: NYUv2's 40, the same after `unknown`, or Cityscapes' 19."""
    known: dict[int, tuple[str, ...]] = {
        len(NYU40_CLASSES): NYU40_CLASSES,
        len(NYU40_CLASSES) + 1: ("unknown", *NYU40_CLASSES),
        len(CITYSCAPES_CLASSES): CITYSCAPES_CLASSES,
    }
    names = known.get(count) or tuple(f"class {index}" for index in range(count))
    colours: list[Any] = [tuple(int(v) for v in colour) for colour in palette(count)]
    if names[0] == "unknown":
        colours = [(0, 0, 0), *colours[:-1]]
    return Classes(names=names, palette=tuple(colours))


def _run_reference(source: Path, spec: InputSpec) -> dict[str, NDArray[np.float32]]:
    """What the float32 graph gives on the self-test's input."""
    session = ort.InferenceSession(os.fspath(source), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, {spec.name: pattern(spec)}), strict=True))


def _runs_here(info: EngineInfo) -> bool:
    if info.kind not in _NEED_GPU:
        return True
    try:
        # A plan for other cards is to be proved on one of those, by the runtime.
        return missing_gpu() is None and (not info.targets or capability_here() in info.targets)
    except ModuleNotFoundError:  # a machine that only builds has no cuda-python
        return False


def _prove(folder: Path, plugins: tuple[Path, ...]) -> None:
    """Run the new bundle's self-test with the engine itself, before the bundle gets its place."""
    bundle = load_bundle(folder)
    backend = open_backend(bundle, BackendOptions(plugins=plugins))
    try:
        assert bundle.manifest.self_test is not None
        check_self_test(bundle.manifest.self_test, backend.run(pattern(bundle.manifest.input)))
    finally:
        backend.close()
