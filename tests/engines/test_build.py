"""What `build_bundle` refuses before it starts, and the largest number of classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from engines import BuildOptions, Lowering, build_bundle
from export import export_onnx
from m2h_deploy import Runtime
from m2h_deploy.errors import M2HError
from m2h_deploy.model import load_checkpoint, save_checkpoint
from m2h_deploy.results import write_prediction
from tests.networks import random_network


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"engine": "tensorrt-rtx", "threads": 2}, "number of threads"),
        ({"engine": "tensorrt-rtx", "affinity": (0,)}, "affinity of threads"),
        ({"engine": "openvino", "provider": "cuda"}, "provider cuda"),
        ({"engine": "onnxruntime", "hint": "bf16"}, "hint bf16"),
        ({"engine": "onnxruntime", "tensorrt": BuildOptions(targets=("8.6",))}, "option of TensorRT"),
        ({"engine": "onnxruntime", "lowering": Lowering(min_psnr=30)}, "fp32"),
    ],
)
def test_an_option_that_nothing_would_look_at_is_refused(options, named, tiny_onnx, tmp_path):
    with pytest.raises(M2HError, match=named) as caught:
        build_bundle(tiny_onnx, tmp_path / "bundle", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bfloat16_checkpoint_with_all_classes_that_labels_hold_goes_the_whole_way(tmp_path):
    model = random_network(num_classes=255)
    # The last class wins everywhere.
    model.state_dict()["heads.semantics.final.bias"][-1] = 1e6
    checkpoint = save_checkpoint(model, tmp_path / "c.safetensors", dtype=torch.bfloat16)
    export_onnx(load_checkpoint(checkpoint), tmp_path / "m.onnx", height=28, width=42)
    classes = build_bundle(tmp_path / "m.onnx", tmp_path / "bundle").manifest.classes
    assert len(classes.names) == len(set(classes.palette)) == 255
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with Runtime.load(tmp_path / "bundle") as runtime:
        write_prediction(tmp_path, "x", image, runtime(image), classes)
    assert (cv2.imread(str(tmp_path / "x_labels.png"), cv2.IMREAD_UNCHANGED) == 254).all()
