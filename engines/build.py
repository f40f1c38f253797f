"""`build_bundle`: an exported ONNX file to a bundle that says and proves what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from engines.graph import ModelCard, default_opset, load_graph, read_card
from engines.onnxruntime import build_onnxruntime
from m2h_deploy import __version__
from m2h_deploy.backends import BackendOptions, open_backend
from m2h_deploy.bundle import (
    Bundle,
    Classes,
    EngineInfo,
    InputSpec,
    Manifest,
    ModelInfo,
    OutputSpec,
    file_sha256,
    load_bundle,
    new_bundle_folder,
    write_manifest,
)
from m2h_deploy.data.classes import CITYSCAPES_CLASSES, NYU40_CLASSES, palette
from m2h_deploy.errors import M2HError
from m2h_deploy.preprocess import PRESETS
from m2h_deploy.selftest import check_self_test, make_self_test, pattern

ENGINES = ("onnxruntime",)
PRECISIONS = ("fp32",)

_OUTPUTS = {
    "depth": ("metric depth along the optical axis", "m"),
    "semantics": ("class logits; the largest is the class", "1"),
    "normals": ("surface normal, x left, y up, z towards the camera", "unit vector"),
    "edges": ("boundary logit; its sigmoid is the probability", "1"),
}


def build_bundle(
    onnx_path: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    engine: str = "onnxruntime",
    precision: str = "fp32",
    threads: int | None = None,
) -> Bundle:
    """Build an engine from an exported ONNX file and put it into a bundle at `out_dir`.

    `threads` is recorded as the engine's default. The bundle holds a golden self-test made from the float32 graph on
    ONNX Runtime's CPU; where the engine runs on this machine it has passed it. An older bundle at `out_dir` is
    replaced only when the new one is whole. Raises M2HError on bad input, CheckFailed when the engine's numbers are
    wrong.
    """
    if engine not in ENGINES:
        raise M2HError(f"engine '{engine}': choose one of {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise M2HError(f"precision '{precision}': choose one of {', '.join(PRECISIONS)}")
    source = Path(onnx_path)
    proto = load_graph(source)
    card = read_card(proto, source)
    with new_bundle_folder(out_dir) as folder:
        info = build_onnxruntime(source, folder, precision=precision, threads=threads)
        manifest = _manifest(proto, card, info, source, folder)
        write_manifest(folder, manifest)
        _prove(folder)
    return load_bundle(out_dir)


def _manifest(proto: onnx.ModelProto, card: ModelCard, info: EngineInfo, source: Path, folder: Path) -> Manifest:
    spec = _input_spec(proto, card)
    expected = _run_reference(source, spec)
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
        input=spec,
        outputs=tuple(_output_spec(value) for value in proto.graph.output),
        depth_range=(card.config["min_depth"], card.config["max_depth"]),
        classes=class_list(card.config["num_classes"]),
        engine=info,
        self_test=make_self_test(expected, info.precision),
        files={file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    )


def _input_spec(proto: onnx.ModelProto, card: ModelCard) -> InputSpec:
    value = proto.graph.input[0]
    batch, _, height, width = value.type.tensor_type.shape.dim
    normalisation = PRESETS[card.preset]
    return InputSpec(
        name=value.name,
        batch=batch.dim_value or None,
        height=height.dim_value,
        width=width.dim_value,
        mean=normalisation.mean,
        std=normalisation.std,
    )


def _output_spec(value: onnx.ValueInfoProto) -> OutputSpec:
    meaning, unit = _OUTPUTS[value.name]
    shape = tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
    return OutputSpec(name=value.name, meaning=meaning, unit=unit, shape=shape)  # type: ignore[arg-type]


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


def _prove(folder: Path) -> None:
    """Run the new bundle's self-test with the engine itself, before the bundle gets its place."""
    bundle = load_bundle(folder)
    backend = open_backend(bundle, BackendOptions())
    assert bundle.manifest.self_test is not None
    check_self_test(bundle.manifest.self_test, backend.run(pattern(bundle.manifest.input)))
    backend.close()
