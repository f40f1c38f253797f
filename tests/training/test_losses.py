"""Test each loss on a case small enough to compute by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m2h_deploy.training import losses

LOG2 = math.log(2)


def maps(*rows: list[float]) -> Tensor:
    """Return one image of one channel: (1, 1, H, W)."""
    return torch.tensor([[list(rows)]])


def everywhere(values: Tensor) -> Tensor:
    return torch.ones_like(values[:, :1], dtype=torch.bool)


def nowhere(values: Tensor) -> Tensor:
    return torch.zeros_like(values[:, :1], dtype=torch.bool)


def test_segmentation_loss_is_alpha_cross_entropy_plus_beta_dice() -> None:
    # Two classes, even odds at both pixels; the first pixel is class 0, the second class 1.
    logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    # Cross-entropy ln 2. Per class: overlap 0.5, sums 1 and 1, so Dice is 1 - 2 * 0.5 / 2 = 0.5.
    assert losses.segmentation_loss(logits, target).item() == pytest.approx(0.5 * LOG2 + 0.75 * 0.5)
    fine = losses.segmentation_loss(logits, target, alpha=0.75, beta=1.0)
    assert fine.item() == pytest.approx(0.75 * LOG2 + 0.5)


def test_dice_skips_unlabeled_pixels_and_absent_classes() -> None:
    logits = torch.zeros(1, 4, 1, 3)
    target = torch.tensor([[[2, 2, -1]]])
    # Class 2 alone occurs, at two pixels: overlap 0.5, probability mass 0.5, count 2.
    dice = losses.segmentation_loss(logits, target, alpha=0.0, beta=1.0)
    assert dice.item() == pytest.approx(1 - 2 * 0.5 / (0.5 + 2))


def test_cross_entropy_is_a_mean_over_labeled_pixels_only() -> None:
    logits = torch.tensor([[[[0.0, 100.0]], [[0.0, -100.0]]]])
    # The second pixel would cost 200; it is unlabeled.
    loss = losses.segmentation_loss(logits, torch.tensor([[[0, -1]]]), alpha=1.0, beta=0.0)
    assert loss.item() == pytest.approx(LOG2)


def test_indoor_depth_is_huber_plus_squared_gradient_difference() -> None:
    prediction, target = maps([1.0, 5.0], [1.0, 2.0]), maps([1.5, 2.0], [1.0, 2.0])
    # Errors -0.5, 3, 0, 0: Huber 0.125, 2.5, 0, 0, mean 0.65625.
    # Differences of the error along x: 3.5, 0, mean square 6.125; along y: 0.5, -3, mean square 4.625.
    loss = losses.indoor_depth_loss(prediction, target, everywhere(target), gradient_weight=2.0)
    assert loss.item() == pytest.approx(0.65625 + 2 * (6.125 + 4.625))


def test_depth_gradients_count_where_both_pixels_are_known() -> None:
    prediction, target = maps([1.0, 3.0, 9.0]), maps([1.0, 2.0, 0.0])
    # Known errors 0 and 1: Huber mean 0.25; the one whole pair differs by 1; no pair along y.
    loss = losses.indoor_depth_loss(prediction, target, target > 0)
    assert loss.item() == pytest.approx(0.25 + 1.0)


def test_outdoor_depth_is_scale_invariant_plus_log_gradients() -> None:
    e = math.e
    prediction, target = maps([e, e**2]), maps([1.0, 1.0])
    # Log differences 1 and 2: mean square 2.5, squared mean 2.25; their difference along x is 1.
    loss = losses.outdoor_depth_loss(prediction, target, everywhere(target), gradient_weight=0.5)
    assert loss.item() == pytest.approx(2.5 - 0.5 * 2.25 + 0.5 * 1.0)


def test_full_variance_focus_ignores_the_scale_of_depth() -> None:
    target = maps([1.0, 4.0], [2.0, 3.0])
    loss = losses.outdoor_depth_loss(7 * target, target, everywhere(target), variance_focus=1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_relative_depth_counts_errors_as_a_share_of_the_true_depth() -> None:
    prediction, target = maps([0.5, 2.2]), maps([1.0, 2.0])
    # Ratios 0.5 and 1.1, delta 0.2: linear 0.5 - 0.2 / 2 and square 0.1^2 / (2 * 0.2), mean 0.2125.
    # The difference of the errors -0.5 and 0.2 m along x is 0.7.
    loss = losses.relative_depth_loss(prediction, target, everywhere(target), gradient_weight=2.0, delta=0.2)
    assert loss.item() == pytest.approx(0.2125 + 2 * 0.49)


def test_normals_cost_one_minus_the_cosine() -> None:
    # 0, 60, 90 and 180 degrees apart: 0, 0.5, 1, 2.
    prediction = torch.tensor([[0.0, 0, 1], [0, math.sqrt(3), 1], [1, 0, 0], [0, 0, -5]]).T.reshape(1, 3, 1, 4)
    target = torch.tensor([[0.0, 0, 1]] * 4).T.reshape(1, 3, 1, 4)
    assert losses.normals_loss(prediction, target, everywhere(target)).item() == pytest.approx(0.875)


def test_edges_cost_binary_cross_entropy_of_the_logits() -> None:
    logits, target = maps([0.0, math.log(3), 50.0]), maps([1.0, 0.0, -1.0])
    # Probabilities 1/2 and 3/4 for truths 1 and 0: ln 2 and ln 4; the third pixel is unknown.
    loss = losses.edges_loss(logits, target, target >= 0)
    assert loss.item() == pytest.approx((LOG2 + 2 * LOG2) / 2)


def test_normals_of_depth_follow_equation_16a() -> None:
    # One meter a pixel to the right, two a pixel down.
    depth = maps([1.0, 2.0], [3.0, 4.0])
    expected = torch.tensor([-1.0, -2.0, 1.0]) / math.sqrt(6)
    torch.testing.assert_close(losses.normals_of_depth(depth)[0, :, 0, 0], expected)


def test_with_a_camera_normals_of_depth_are_those_of_the_plane() -> None:
    normal, focal, size = torch.tensor([0.48, -0.6, 0.64]), 40.0, 9
    axis = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    rays = torch.stack((u / focal, v / focal, torch.ones(size, size)))
    depth = (2.0 / torch.einsum("c,chw->hw", normal, rays))[None, None]
    camera = losses.Camera((focal, focal), ((size - 1) / 2, (size - 1) / 2))
    found = losses.normals_of_depth(depth, camera)
    torch.testing.assert_close(found, normal.view(1, 3, 1, 1).expand_as(found), atol=1e-4, rtol=0)


def test_depth_and_normals_that_agree_have_loss_zero_and_opposed_ones_two() -> None:
    depth = maps([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    agreeing = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 2, 3)
    assert losses.depth_normal_consistency(depth, agreeing).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.depth_normal_consistency(depth, -agreeing).item() == pytest.approx(2.0)


def test_edge_segmentation_consistency_is_the_l1_distance_of_gradient_and_edge() -> None:
    # Class 0 rises by 3 to the right and 4 downwards (length 5), class 1 stays: mean 2.5. Edge probability 0.5.
    logits = torch.tensor([[[[0.0, 3.0], [4.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]]])
    edges = torch.zeros(1, 1, 2, 2)
    assert losses.edge_segmentation_consistency(logits, edges).item() == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.segmentation_loss(x, torch.full((2, 4, 5), -1)),
        lambda x: losses.indoor_depth_loss(x[:, :1], torch.zeros(2, 1, 4, 5), nowhere(x)),
        lambda x: losses.outdoor_depth_loss(x[:, :1], torch.zeros(2, 1, 4, 5), nowhere(x)),
        lambda x: losses.relative_depth_loss(x[:, :1], torch.zeros(2, 1, 4, 5), nowhere(x)),
        lambda x: losses.normals_loss(x, torch.zeros(2, 3, 4, 5), nowhere(x)),
        lambda x: losses.edges_loss(x[:, :1], torch.full((2, 1, 4, 5), -1.0), nowhere(x)),
    ],
    ids=["segmentation", "indoor depth", "outdoor depth", "relative depth", "normals", "edges"],
)
def test_a_batch_without_labels_has_zero_loss_and_zero_gradient(loss: object) -> None:
    prediction = torch.randn(2, 3, 4, 5, requires_grad=True)
    value = loss(prediction)  # type: ignore[operator]
    value.backward()
    assert value.item() == 0
    assert prediction.grad is not None and not prediction.grad.any()


def test_unknown_labels_of_any_value_do_not_reach_the_gradient() -> None:
    prediction = torch.randn(1, 1, 3, 3, requires_grad=True)
    target = torch.full((1, 1, 3, 3), 2.0)
    target[..., 0, 0] = float("nan")
    losses.indoor_depth_loss(prediction, target, ~target.isnan()).backward()
    assert prediction.grad is not None and prediction.grad.isfinite().all()


def test_flat_logits_have_a_finite_gradient() -> None:
    logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
    losses.edge_segmentation_consistency(logits, torch.zeros(1, 1, 4, 4)).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
