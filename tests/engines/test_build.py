"""Test what `build_bundle` refuses, and that it does so before it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

import engines.build
from engines import (
    Lowering,
    OnnxRuntimeOptions,
    OpenVinoOptions,
    QuantPolicy,
    TensorRtOptions,
    build_bundle,
    options_of,
)
from engines.targets import check_rtx_targets
from export import export_onnx
from m2h_deploy import Runtime
from m2h_deploy.backends import tensorrt_api
from m2h_deploy.errors import M2HError
from m2h_deploy.model import load_checkpoint, save_checkpoint
from m2h_deploy.sinks.files import write_prediction
from tests.commands import mistake, refused
from tests.engines.graphs import small_graph
from tests.networks import random_network


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(small_graph(), path)
    return path


@pytest.fixture
def no_work(monkeypatch) -> None:
    """Fail a test whose mistake is detected only after the graph was loaded."""

    def load(path):
        raise AssertionError("the graph was loaded before the mistake was found")

    monkeypatch.setattr(engines.build, "read_onnx", load)


def refused_build(source: Path, out: Path, **options) -> str:
    """Return the message of a refused build, which must leave no files."""
    before = sorted(out.parent.iterdir())
    message = refused(build_bundle, source, out, **options)
    assert sorted(out.parent.iterdir()) == before
    return message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": "tensorrt-rtx", "options": OnnxRuntimeOptions()}, "takes TensorRtOptions as options, got OnnxRun"),
        ({"engine": "openvino", "options": OnnxRuntimeOptions()}, "the engine openvino takes OpenVinoOptions"),
        ({"options": TensorRtOptions()}, "the engine onnxruntime takes OnnxRuntimeOptions"),
        (
            {"engine": "onnxruntime", "lowering": Lowering(min_psnr=30)},
            "need a float32 graph and --precision fp16",
        ),
        ({"precision": "fp32", "lowering": Lowering(io="fp16")}, "need a float32 graph and --precision fp16"),
        ({"graph": Path("kept.onnx")}, "only a lowered graph is kept"),
        ({"precision": "fp16", "lowering": Lowering(method="entropy")}, "calibrator has no effect in fp16"),
        ({"precision": "fp16", "lowering": Lowering(count=8)}, "number of calibration frames has no effect"),
        ({"precision": "fp16", "lowering": Lowering(min_psnr=30)}, "least PSNR has no effect"),
        ({"precision": "fp16", "lowering": Lowering(policy=QuantPolicy())}, "policy has no effect"),
        ({"precision": "int8", "lowering": Lowering(seed=3)}, "seed chooses calibration frames"),
        ({"engine": "tensorrt-rtx", "precision": "fp8", "lowering": Lowering(method="max")}, "no effect in fp8"),
        (
            {
                "engine": "tensorrt-rtx",
                "precision": "fp8",
                "lowering": Lowering(policy=QuantPolicy(weights_only=True)),
            },
            "weights_only applies to int8",
        ),
        (
            {"precision": "int8", "lowering": Lowering(method="max", policy=QuantPolicy(weights_only=True))},
            "needs no ranges",
        ),
    ],
)
def test_an_option_without_effect_is_refused(options, named, small, tmp_path, no_work):
    assert named in refused_build(small, tmp_path / "bundle", **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": "tensorrt-rtx", "options": TensorRtOptions(targets=("8.7",))}, "8.7 (orin)"),
        ({"engine": "tensorrt-rtx", "options": TensorRtOptions(targets=("8.6", "9.0"))}, "9.0 (h100)"),
        ({"engine": "tensorrt-rtx", "options": TensorRtOptions(level=3)}, "no builder level"),
        ({"precision": "fp8"}, "no CPU computes in FP8: build with --precision int8 or fp16"),
        ({"precision": "fp8", "engine": "openvino"}, "no CPU computes in FP8"),
        (
            {"precision": "fp8", "engine": "tensorrt-rtx", "options": TensorRtOptions(targets=("8.6", "8.9"))},
            "8.6 (a10, rtx3060, rtx3070, rtx3080, rtx3090, rtxa2000) does not compute in FP8, which begins with 8.9",
        ),
        (
            {"precision": "fp8", "engine": "tensorrt", "options": TensorRtOptions(hardware_compatible=True)},
            "cannot compute in FP8",
        ),
        ({"precision": "fp64"}, "choose one of fp32, fp16, int8"),
        ({"engine": "tflite"}, "choose one of onnxruntime"),
        ({"options": OnnxRuntimeOptions(provider="cuda")}, "lacks the provider 'cuda'"),
        (
            {"engine": "openvino", "precision": "fp32", "options": OpenVinoOptions(hint="bf16")},
            "computes in f32",
        ),
        ({"precision": "int8", "lowering": Lowering("nowhere")}, "nowhere"),
        ({"precision": "int8", "lowering": Lowering("0")}, "camera"),
        ({"precision": "int8", "lowering": Lowering("small.png", method="mean")}, "calibrator 'mean'"),
        ({"precision": "fp16", "graph": Path("nowhere/g.onnx")}, "there is no folder nowhere"),
        ({"precision": "fp16", "graph": Path("small.onnx")}, "would replace its source"),
    ],
)
def test_impossible_options_are_refused_before_any_work(options, named, small, tmp_path, no_work, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named in refused_build(small, tmp_path / "bundle", **options)


@pytest.mark.parametrize(
    ("engine", "given", "named"),
    [
        ("onnxruntime", {"hint": "bf16"}, "--hint applies only to --engine openvino"),
        ("openvino", {"provider": "cpu"}, "--provider applies only to --engine onnxruntime"),
        ("tensorrt", {"threads": 2}, "--threads applies only to --engine onnxruntime or openvino"),
        ("openvino", {"targets": ()}, "--target applies only to --engine tensorrt or tensorrt-rtx"),
        ("onnxruntime", {"strip_weights": True}, "--strip-weights applies only to --engine tensorrt or tensorrt-rtx"),
        ("onnxruntime", {"threads": 0}, "threads 0: must be between 1 and"),
        ("openvino", {"hint": "fp8"}, "choose one of f32, bf16, f16"),
        ("tflite", {}, "choose one of onnxruntime"),
    ],
)
def test_an_option_of_another_engine_is_named_with_its_own(engine, given, named):
    with pytest.raises(M2HError, match=named):
        options_of(engine, {"level": None, **given})


def test_given_options_become_the_options_of_the_engine():
    assert options_of("openvino", {"hint": "bf16", "threads": 2}) == OpenVinoOptions(threads=2, hint="bf16")
    assert options_of("tensorrt", {"hint": None, "level": 3}) == TensorRtOptions(level=3)


def test_too_few_calibration_pictures_are_counted_before_any_work(small, tmp_path, no_work):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.zeros((32, 32, 3), np.uint8))
    said = refused_build(small, tmp_path / "bundle", precision="int8", lowering=Lowering(str(folder), count=8))
    assert "has 3 frames, 10 are needed" in said


def test_an_output_path_with_other_content_is_refused_before_any_work(small, tmp_path, no_work):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "is not a bundle" in refused_build(small, tmp_path / "mine")
    assert "lies in the bundle" in refused_build(
        small, tmp_path / "mine", precision="fp16", graph=tmp_path / "mine" / "g.onnx"
    )
    (tmp_path / "file").write_text("mine")
    assert "file" in refused_build(small, tmp_path / "file")


@pytest.mark.parametrize(("engine", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt-rtx")])
def test_an_engine_that_is_not_installed_is_refused_before_any_work(
    engine, extra, small, tmp_path, no_work, monkeypatch
):
    def missing(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(tensorrt_api, "_modules", {})
    monkeypatch.setattr(tensorrt_api.importlib, "import_module", missing)
    said = refused_build(small, tmp_path / "bundle", engine=engine, precision="fp16")
    assert "is not installed" in said
    assert extra in said


@pytest.mark.parametrize("module", ["onnxruntime", "openvino"])
def test_an_engine_on_the_cpu_that_is_not_installed_is_refused_before_any_work(
    module, small, tmp_path, no_work, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    assert "is not installed" in refused_build(small, tmp_path / "bundle", engine=module)


def test_tensorrt_without_a_gpu_is_refused_before_any_work(small, tmp_path, no_work, monkeypatch):
    """TensorRT itself crashes with a null pointer in this case."""
    monkeypatch.setattr("engines.tensorrt.load_tensorrt", lambda flavor: object())
    monkeypatch.setattr("engines.tensorrt.missing_gpu", lambda bindings: "no CUDA device")
    said = refused_build(small, tmp_path / "bundle", engine="tensorrt")
    assert "builds only on a machine with a GPU" in said


def test_a_policy_that_is_nested_too_deeply_gives_a_one_line_error(small, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text('{"keep":' * 100_000)
    said = mistake("build", small, "-o", tmp_path / "bundle", "--precision", "int8", "--policy", policy)
    assert said.startswith(f"the policy {policy}: not JSON: ")


def test_int8_of_a_float32_graph_needs_frames(small, tmp_path):
    assert "give --calibration" in refused_build(small, tmp_path / "bundle", precision="int8")


def test_fp8_of_a_float32_graph_needs_frames(small, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    said = refused_build(small, tmp_path / "bundle", precision="fp8", engine="tensorrt-rtx")
    assert said.startswith("fp8 needs calibration frames: give --calibration")


def test_fp8_for_the_gpu_of_this_machine_is_refused_if_it_lacks_fp8(small, tmp_path, no_work, monkeypatch):
    monkeypatch.setattr("engines.tensorrt.missing_gpu", lambda bindings: None)
    monkeypatch.setattr("engines.tensorrt.capability_here", lambda: "8.7")
    said = refused_build(small, tmp_path / "bundle", precision="fp8", engine="tensorrt")
    assert "8.7 (orin) does not compute in FP8" in said


def test_a_maximum_batch_is_refused_for_a_fixed_batch(small, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    options = {"engine": "tensorrt-rtx", "options": TensorRtOptions(max_batch=2)}
    assert "has a fixed batch" in refused_build(small, tmp_path / "bundle", **options)


def test_tensorrt_rtx_runs_on_the_capabilities_of_its_support_matrix():
    check_rtx_targets(("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"))
    for target in ("8.7", "9.0", "10.0", "11.0", "6.1"):
        with pytest.raises(M2HError, match=r"use --engine tensorrt on the device"):
            check_rtx_targets((target,))


@pytest.mark.slow
def test_a_bfloat16_checkpoint_with_255_classes_runs_from_export_to_labels(tmp_path):
    model = random_network(num_classes=255)
    # The last class is predicted everywhere.
    model.state_dict()["heads.semantics.final.bias"][-1] = 1e6
    checkpoint = save_checkpoint(model, tmp_path / "c.safetensors", dtype=torch.bfloat16)
    export_onnx(load_checkpoint(checkpoint), tmp_path / "m.onnx", height=28, width=42)
    classes = build_bundle(tmp_path / "m.onnx", tmp_path / "bundle").manifest.classes
    assert len(classes.names) == len(set(classes.palette)) == 255
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with Runtime.load(tmp_path / "bundle") as runtime:
        write_prediction(tmp_path, "x", image, runtime(image), classes)
    assert (cv2.imread(str(tmp_path / "x_labels.png"), cv2.IMREAD_UNCHANGED) == 254).all()
