"""Losses of the paper (section III B). Each is a mean over the valid pixels of a batch.

A batch without valid pixels has loss 0 and gradient 0.

Shapes: predictions as the network gives them, (N, C, H, W); masks are bool (N, 1, H, W), true where the label is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Meters. Smaller depths are raised to this value before a division or a logarithm.
_LEAST_DEPTH = 1e-3


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average `values` where `mask` (broadcastable to it) is true; 0 if it is true nowhere."""
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def segmentation_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.5, beta: float = 0.75) -> Tensor:
    """Compute alpha * cross-entropy + beta * Dice (equation 14).

    Args:
        logits: (N, C, H, W).
        target: int64 (N, H, W), class index 0..C-1, -1 where unlabeled.
        alpha: 0.5 in initial training, 0.75 in fine-tuning.
        beta: 0.75 in initial training, 1.0 in fine-tuning.

    Returns:
        A scalar.
    """
    log_probability = F.log_softmax(logits, dim=1)
    cross_entropy = F.nll_loss(log_probability, target, ignore_index=-1, reduction="sum")
    cross_entropy = cross_entropy / (target >= 0).sum().clamp(min=1)
    return alpha * cross_entropy + beta * _dice(log_probability.exp(), target)


def _dice(probability: Tensor, target: Tensor) -> Tensor:
    """Compute 1 - mean over classes of 2 sum(p g) / (sum p + sum g), the sums over the batch's labeled pixels.

    Classes without labeled pixels in the batch are excluded: their quotient is always 0.
    """
    classes = probability.shape[1]
    known = target >= 0
    index = target.clamp(min=0)
    counts = torch.bincount(index[known], minlength=classes).to(probability.dtype)
    hit = torch.where(known, probability.gather(1, index[:, None])[:, 0], 0.0)
    overlap = torch.zeros(classes, dtype=probability.dtype, device=probability.device)
    overlap = overlap.index_add(0, index.flatten(), hit.flatten())
    mass = torch.einsum("nchw,nhw->c", probability, known.to(probability.dtype))
    shown = counts > 0
    score = 2 * overlap / (mass + counts).clamp(min=1e-6)
    return torch.where(shown, 1 - score, 0.0).sum() / shown.sum().clamp(min=1)


def _differences(values: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the differences to the right and to the lower neighbor: (N, C, H, W-1) and (N, C, H-1, W)."""
    return values[..., :, 1:] - values[..., :, :-1], values[..., 1:, :] - values[..., :-1, :]


def _pair_masks(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask[..., :, 1:] & mask[..., :, :-1], mask[..., 1:, :] & mask[..., :-1, :]


def gradient_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute the squared difference of spatial gradients (second term of equations 15a and 15b).

    It is the mean over the differences in x plus the mean over those in y. A difference counts if both pixels are
    valid.

    Args:
        prediction: (N, 1, H, W).
        target: (N, 1, H, W), finite everywhere.
        mask: bool (N, 1, H, W).

    Returns:
        A scalar.
    """
    terms = [
        masked_mean(gradient.square(), pair)
        for gradient, pair in zip(_differences(prediction - target), _pair_masks(mask), strict=True)
    ]
    return terms[0] + terms[1]


def indoor_depth_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, gradient_weight: float = 1.0, delta: float = 1.0
) -> Tensor:
    """Compute Huber + lambda_grad * squared gradient difference (equation 15a).

    Args:
        prediction: (N, 1, H, W) meters.
        target: (N, 1, H, W) meters.
        mask: bool (N, 1, H, W).
        gradient_weight: lambda_grad, 0.5 to 2 in the paper.
        delta: error in meters at which Huber changes from quadratic to linear.

    Returns:
        A scalar.
    """
    target = torch.where(mask, target, 0.0)
    huber = F.huber_loss(prediction, target, reduction="none", delta=delta)
    return masked_mean(huber, mask) + gradient_weight * gradient_loss(prediction, target, mask)


def outdoor_depth_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, gradient_weight: float = 1.0, variance_focus: float = 0.5
) -> Tensor:
    """Compute scale-invariant + lambda_grad * squared gradient difference of log depth (equation 15b).

    The scale-invariant term is Eigen et al. 2014: mean(d^2) - variance_focus * mean(d)^2 with d the difference of the
    logarithms, per image, then the mean over the images that have depth.

    Args:
        prediction: (N, 1, H, W) meters.
        target: (N, 1, H, W) meters.
        mask: bool (N, 1, H, W).
        gradient_weight: lambda_grad, 0.5 to 2 in the paper.
        variance_focus: 1 for full scale invariance; 0.5 in Eigen et al.

    Returns:
        A scalar.
    """
    log_prediction = prediction.clamp(min=_LEAST_DEPTH).log()
    log_target = torch.where(mask, target, 1.0).clamp(min=_LEAST_DEPTH).log()
    difference = torch.where(mask, log_prediction - log_target, 0.0)
    count = mask.sum(dim=(1, 2, 3))
    mean = difference.sum(dim=(1, 2, 3)) / count.clamp(min=1)
    square = difference.square().sum(dim=(1, 2, 3)) / count.clamp(min=1)
    invariant = masked_mean(square - variance_focus * mean.square(), count > 0)
    return invariant + gradient_weight * gradient_loss(log_prediction, log_target, mask)


def relative_depth_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, gradient_weight: float = 1.0, delta: float = 0.1
) -> Tensor:
    """Compute Huber of the relative error, over delta, + lambda_grad * squared gradient difference. Not in the paper.

    Equation 15a penalizes errors in meters, quadratically below one meter: half a meter costs the same on a chair at
    0.8 m as on the wall 5 m behind it. This loss penalizes relative errors, like the metric "abs rel", linearly above
    `delta`.

    Args:
        prediction: (N, 1, H, W) meters.
        target: (N, 1, H, W) meters.
        mask: bool (N, 1, H, W).
        gradient_weight: lambda_grad.
        delta: relative error at which Huber changes from quadratic to linear.

    Returns:
        A scalar.
    """
    ratio = prediction / torch.where(mask, target, 1.0).clamp(min=_LEAST_DEPTH)
    huber = F.huber_loss(ratio, torch.ones_like(ratio), reduction="none", delta=delta) / delta
    gradient = gradient_loss(prediction, torch.where(mask, target, 0.0), mask)
    return masked_mean(huber, mask) + gradient_weight * gradient


def normals_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute 1 - cosine of the angle between predicted and true normals (section III B 1).

    Args:
        prediction: (N, 3, H, W), vectors of any length.
        target: (N, 3, H, W), vectors of any length.
        mask: bool (N, 1, H, W).

    Returns:
        A scalar, 0..2.
    """
    return masked_mean(1 - F.cosine_similarity(prediction, target, dim=1)[:, None], mask)


def edges_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Compute the binary cross-entropy (section III B 1).

    Args:
        logits: (N, 1, H, W).
        target: (N, 1, H, W), 0 or 1 where `mask` is true.
        mask: bool (N, 1, H, W).

    Returns:
        A scalar.
    """
    values = F.binary_cross_entropy_with_logits(logits, torch.where(mask, target, 0.0), reduction="none")
    return masked_mean(values, mask)


@dataclass(frozen=True)
class Camera:
    """Pinhole camera: focal lengths and principal point, each (x, y) in pixels of the depth map."""

    focal: tuple[float, float]
    center: tuple[float, float]


def normals_of_depth(depth: Tensor, camera: Camera | None = None) -> Tensor:
    """Compute unit normals of a depth map by finite differences (equation 16a).

    The paper's form, (-dx d, -dy d, 1) with differences between neighboring pixels, does not use a camera. Where a
    pixel covers only millimeters, every surface seems to face the camera. With a camera, the normal is that of the
    plane in space through the pixel and its right and lower neighbor.

    Args:
        depth: (N, 1, H, W) meters.
        camera: the camera of `depth`; None for the paper's form.

    Returns:
        (N, 3, H-1, W-1), in the convention of `m2h_deploy.data.frame`.
    """
    if camera is None:
        dx = depth[..., :-1, 1:] - depth[..., :-1, :-1]
        dy = depth[..., 1:, :-1] - depth[..., :-1, :-1]
        return F.normalize(torch.cat((-dx, -dy, torch.ones_like(dx)), dim=1), dim=1)
    height, width = depth.shape[2:]
    x = (torch.arange(width, device=depth.device, dtype=depth.dtype) - camera.center[0]) / camera.focal[0]
    y = (torch.arange(height, device=depth.device, dtype=depth.dtype)[:, None] - camera.center[1]) / camera.focal[1]
    points = torch.cat((depth * x, depth * y, depth), dim=1)
    right = points[..., :-1, 1:] - points[..., :-1, :-1]
    down = points[..., 1:, :-1] - points[..., :-1, :-1]
    # The cross product of two pixel steps is around 1e-5 square meters, too close to the default epsilon.
    return F.normalize(torch.linalg.cross(right, down, dim=1), dim=1, eps=1e-20)


def depth_normal_consistency(depth: Tensor, normals: Tensor, camera: Camera | None = None) -> Tensor:
    """Compute 1 - cosine between the predicted normals and those of the predicted depth (equations 16a and 16b).

    Args:
        depth: (N, 1, H, W) meters.
        normals: (N, 3, H, W), in the convention of `m2h_deploy.data.frame`.
        camera: see `normals_of_depth`.

    Returns:
        A scalar, 0..2.
    """
    return (1 - F.cosine_similarity(normals[..., :-1, :-1], normals_of_depth(depth, camera), dim=1)).mean()


def edge_segmentation_consistency(logits: Tensor, edges: Tensor) -> Tensor:
    """Compute |grad S - E|, averaged over pixels (equation 17).

    The paper does not say how the C logits of a pixel are compared with its one edge value. Here grad S is the length
    of (dS/dx, dS/dy), differences to the right and lower neighbor, averaged over classes, and E is the edge
    probability.

    Args:
        logits: segmentation logits S, (N, C, H, W).
        edges: edge logits, (N, 1, H, W).

    Returns:
        A scalar.
    """
    dx = logits[..., :-1, 1:] - logits[..., :-1, :-1]
    dy = logits[..., 1:, :-1] - logits[..., :-1, :-1]
    # The epsilon avoids the infinite gradient of the square root at 0, which flat logits reach.
    length = (dx.square() + dy.square() + 1e-12).sqrt().mean(dim=1, keepdim=True)
    return (length - torch.sigmoid(edges[..., :-1, :-1])).abs().mean()
