"""The runtime gives what the reference gives, at the image's own size, and lets nothing else in."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from m2h_deploy import M2HError, Runtime
from m2h_deploy.data.rooms import render_room
from m2h_deploy.postprocess import Postprocess
from m2h_deploy.preprocess import PRESETS, Preprocess


@pytest.fixture(scope="module")
def runtime(tiny_bundle):
    with Runtime.load(tiny_bundle) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def room():
    return render_room(3, 0, height=120, width=160).image


def test_prediction_has_the_images_size_types_and_ranges(runtime, room):
    prediction = runtime(room)
    assert (prediction.depth.shape, prediction.depth.dtype) == ((120, 160), np.float32)
    assert (prediction.semantics.shape, prediction.semantics.dtype) == ((120, 160), np.uint8)
    assert (prediction.normals.shape, prediction.normals.dtype) == ((120, 160, 3), np.float32)
    assert (prediction.edges.shape, prediction.edges.dtype) == ((120, 160), np.float32)
    assert prediction.depth.min() >= np.float32(1e-3)
    assert prediction.depth.max() <= 10
    assert prediction.semantics.max() <= 40
    np.testing.assert_allclose(np.linalg.norm(prediction.normals, axis=2), 1, atol=1e-5)
    assert 0 <= prediction.edges.min() <= prediction.edges.max() <= 1
    assert set(prediction.timings) == {"preprocess", "inference", "postprocess"}


def test_engine_outputs_equal_the_reference(runtime, tiny_model, room):
    tensor = runtime.preprocess(room)
    with torch.inference_mode():
        reference = tiny_model(torch.from_numpy(tensor.copy()))
    outputs = runtime.backend.run(tensor)
    for task, expected in reference.items():
        error = np.abs(outputs[task] - expected.numpy()) / float(expected.std())
        assert error.mean() < 1e-4, task
        assert error.max() < 3e-3, task


def test_predictions_belong_to_the_caller(runtime, room):
    first = runtime(room)
    depth = first.depth.copy()
    runtime(255 - room)
    np.testing.assert_array_equal(first.depth, depth)


def test_preprocess_is_within_a_grey_level_of_the_published_node():
    """The node resizes in float with half-pixel centres (torch, align_corners=False) and normalises."""
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    preset = PRESETS["published"]
    rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(rgb, (56, 84), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (preset.mean, preset.std))
    ours = torch.from_numpy(Preprocess(preset, 56, 84)(image)) * std + mean
    assert (ours - resized).abs().max() < 1 / 255


def test_colour_order_is_honoured(room):
    preset = PRESETS["imagenet"]
    bgr = Preprocess(preset, 60, 80)(room).copy()
    rgb = Preprocess(preset, 60, 80, color="RGB")(room[:, :, ::-1])
    np.testing.assert_array_equal(rgb, bgr)


def test_postprocess_decides_labels_like_argmax():
    logits = np.random.default_rng(0).standard_normal((41, 30, 40)).astype(np.float32)
    prediction = Postprocess((0.001, 10))({"semantics": logits}, 30, 40)
    np.testing.assert_array_equal(prediction.semantics, logits.argmax(0))
    assert prediction.depth is None


def test_postprocess_clamps_depth_and_survives_opposite_normals():
    outputs = {
        "depth": np.array([[[-1.0, 50.0], [2.0, 3.0]]], np.float32),
        "normals": np.zeros((3, 2, 2), np.float32),
        "edges": np.array([[[-1e9, 1e9], [0.0, 0.0]]], np.float32),
    }
    prediction = Postprocess((0.001, 10))(outputs, 2, 2)
    np.testing.assert_allclose(prediction.depth, [[0.001, 10], [2, 3]])
    assert np.isfinite(prediction.normals).all()
    np.testing.assert_allclose(prediction.edges, [[0, 1], [0.5, 0.5]], atol=1e-6)


def test_grey_and_alpha_are_converted(runtime, room):
    grey = cv2.cvtColor(room, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(runtime(grey).depth, runtime(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)).depth)
    np.testing.assert_array_equal(runtime(grey[:, :, None]).depth, runtime(grey).depth)
    alpha = np.dstack([room, np.full(room.shape[:2], 7, np.uint8)])
    np.testing.assert_array_equal(runtime(alpha).depth, runtime(room).depth)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint16),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((32, 32, 2), np.uint8),
        np.zeros((4, 32, 32, 3), np.uint8),
        np.zeros((0, 32, 3), np.uint8),
        None,
    ],
)
def test_what_is_no_image_is_refused_in_one_line(runtime, image):
    with pytest.raises(M2HError) as error:
        runtime(image)
    assert "\n" not in str(error.value)


def test_loading_and_running_a_bundle_imports_no_torch(tiny_bundle):
    program = (
        "import sys, numpy; from m2h_deploy import Runtime; runtime = Runtime.load(sys.argv[1]); "
        "runtime(numpy.zeros((64, 64, 3), numpy.uint8)); "
        "assert not {'torch', 'onnx', 'matplotlib', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_bundle)], check=True)
