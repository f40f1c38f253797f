"""Test sizes, batches, and the options that give the paper's other rows."""

from __future__ import annotations

import pytest
import torch

from m2h_deploy.errors import M2HError
from m2h_deploy.model import build_model, make_config
from m2h_deploy.model.backbone import center_pad
from m2h_deploy.model.wmca import window_partition, window_reverse
from tests.networks import random_network


@pytest.mark.parametrize(("height", "width"), [(112, 112), (97, 130), (14, 14), (113, 60)])
def test_any_size_gives_outputs_of_that_size(tiny_model, height, width):
    with torch.inference_mode():
        outputs = tiny_model(torch.randn(1, 3, height, width))
    channels = {"depth": 1, "semantics": 41, "normals": 3, "edges": 1}
    assert {task: tuple(output.shape) for task, output in outputs.items()} == {
        task: (1, count, height, width) for task, count in channels.items()
    }


def test_a_batch_of_two_is_two_single_frames(tiny_model):
    images = torch.randn(2, 3, 84, 98, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        both = tiny_model(images)
        single = [tiny_model(images[i : i + 1]) for i in range(2)]
    for task, output in both.items():
        expected = torch.cat([s[task] for s in single])
        # Other batch sizes use other kernels, which differ by float32 rounding.
        error = (output - expected).abs() / expected.std()
        assert error.max() < 3e-3, task
        assert error.mean() < 1e-4, task


def test_padding_is_central_and_its_odd_pixel_comes_last():
    padded = center_pad(torch.ones(1, 1, 13, 11), 14)
    assert padded.shape == (1, 1, 14, 14)
    assert padded[0, 0, 13].sum() == 0
    assert padded[0, 0, 0].sum() == 11
    assert padded[0, 0, 0, 0] == 0
    assert padded[0, 0, 0, 1] == 1
    assert padded[0, 0, 0, 11] == 1
    assert padded[0, 0, 0, 12:].sum() == 0


@pytest.mark.parametrize(("height", "width"), [(14, 21), (10, 16)])
def test_windows_reverse_to_the_map(height, width):
    x = torch.randn(2, 5, height, width)
    windows = window_partition(x, 7)
    assert windows.shape == (2 * -(-height // 7) * -(-width // 7), 49, 5)
    torch.testing.assert_close(window_reverse(windows, 7, height, width), x, rtol=0, atol=0)
    torch.testing.assert_close(windows[0, 8], x[0, :, 1, 1], rtol=0, atol=0)  # row 1, column 1 of the first window


@pytest.mark.parametrize(
    "options",
    [
        {"context": "ggfm"},
        {"cross_task": "mha"},
        {"cross_task": "none"},
        {"num_classes": 19, "max_depth": 80.0},
        {"patch_size": 16, "window_size": 5, "cross_heads": 2, "cross_layers": 1, "channels": 16},
        {"separable": False, "channels": 16},
        {"separable": False, "channels": 16, "context": "ggfm", "cross_task": "mha"},
    ],
)
def test_options_build_networks_that_run(options):
    model = random_network(**options)
    with torch.inference_mode():
        outputs = model(torch.randn(1, 3, 96, 96))
    assert outputs["semantics"].shape[1] == options.get("num_classes", 41)
    assert all(torch.isfinite(output).all() for output in outputs.values())


def test_ggfm_reaches_every_task_and_restoration_two():
    assert build_model("m2h-tiny", context="ggfm").context.tasks == ("depth", "semantics", "normals", "edges")
    assert build_model("m2h-tiny").context.tasks == ("depth", "semantics")


def test_larger_backbones_are_dinov2s():
    for name, width, depth in (("vit_base", 768, 12), ("vit_large", 1024, 24)):
        backbone = make_config("m2h", backbone=name).backbone
        assert (backbone.embed_dim, backbone.depth) == (width, depth)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "m2h-huge"},
        {"backbone": "vit_giant"},
        {"cross_task": "swin"},
        {"context": "none"},
        {"color": "blue"},
        {"channels": 0},
        {"channels": 30},
        {"min_depth": 5.0, "max_depth": 1.0},
    ],
)
def test_invalid_options_give_a_one_line_error(options):
    with pytest.raises(M2HError) as error:
        make_config(**options)
    assert "\n" not in str(error.value)
