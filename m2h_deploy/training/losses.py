"""The losses of the paper (section III B). Every one is a mean over valid pixels, and 0 where none is valid.

Shapes: predictions as the network gives them, (N, C, H, W); a mask is bool (N, 1, H, W), true where the label is known.
Means over valid pixels of a whole batch stay defined, with gradient 0, for a batch without any label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Meters; nearer depths count as this where they are divided by or their logarithm is taken.
_LEAST_DEPTH = 1e-3


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` (broadcastable to it) holds; 0 where it holds nowhere."""
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def segmentation_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.5, beta: float = 0.75) -> Tensor:
    """alpha * cross-entropy + beta * Dice (equation 14).

    alpha and beta are 0.5 and 0.75 in initial training, 0.75 and 1.0 in fine-tuning.

    Args:
        logits: (N, C, H, W).
        target: int64 (N, H, W), class index 0..C-1, -1 where unlabeled.
    """
    log_probability = F.log_softmax(logits, dim=1)
    cross_entropy = F.nll_loss(log_probability, target, ignore_index=-1, reduction="sum")
    cross_entropy = cross_entropy / (target >= 0).sum().clamp(min=1)
    return alpha * cross_entropy + beta * _dice(log_probability.exp(), target)


def _dice(probability: Tensor, target: Tensor) -> Tensor:
    """Compute 1 - mean over classes of 2 sum(p g) / (sum p + sum g), the sums over the batch's labeled pixels.

    Classes that the batch does not show are left out of the mean: for them the quotient only says 0.
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
    """Finite differences to the right and to the lower neighbor: (N, C, H, W-1) and (N, C, H-1, W)."""
    return values[..., :, 1:] - values[..., :, :-1], values[..., 1:, :] - values[..., :-1, :]


def _pair_masks(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask[..., :, 1:] & mask[..., :, :-1], mask[..., 1:, :] & mask[..., :-1, :]


def gradient_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared difference of spatial gradients, mean over x plus mean over y (second term of equations 15a and 15b).

    A difference counts where both of its pixels are valid.
    """
    terms = [
        masked_mean(gradient.square(), pair)
        for gradient, pair in zip(_differences(prediction - target), _pair_masks(mask), strict=True)
    ]
    return terms[0] + terms[1]


def indoor_depth_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, gradient_weight: float = 1.0, delta: float = 1.0
) -> Tensor:
    """Huber + lambda_grad * squared gradient difference (equation 15a).

    Args:
        prediction: (N, 1, H, W) meters.
        target: (N, 1, H, W) meters.
        mask: bool (N, 1, H, W).
        gradient_weight: lambda_grad, 0.5 to 2 in the paper.
        delta: meters of error where Huber turns from square to linear.
    """
    target = torch.where(mask, target, 0.0)
    huber = F.huber_loss(prediction, target, reduction="none", delta=delta)
    return masked_mean(huber, mask) + gradient_weight * gradient_loss(prediction, target, mask)


def outdoor_depth_loss(
    prediction: Tensor, target: Tensor, mask: Tensor, *, gradient_weight: float = 1.0, variance_focus: float = 0.5
) -> Tensor:
    """Scale-invariant + lambda_grad * squared gradient difference of log depth (equation 15b).

    The scale-invariant term is Eigen et al. 2014: mean(d^2) - variance_focus * mean(d)^2 with d the difference of the
    logarithms, per image, then the mean over the images that have depth. Arguments as for `indoor_depth_loss`;
    `variance_focus` is 1 for full invariance, 0.5 in Eigen et al.
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
    """Huber of the relative error, over delta, + lambda_grad * squared gradient difference; not one of the paper's.

    Equation 15a counts meters of error, and squares those below one: half a meter costs the same on a chair at 0.8 m as
    on the wall 5 m behind it. Here errors count as "abs rel" counts them, linearly above `delta`.

    Args:
        prediction, target, mask, gradient_weight: as for `indoor_depth_loss`.
        delta: share of the true depth where Huber turns from square to linear.
    """
    ratio = prediction / torch.where(mask, target, 1.0).clamp(min=_LEAST_DEPTH)
    huber = F.huber_loss(ratio, torch.ones_like(ratio), reduction="none", delta=delta) / delta
    gradient = gradient_loss(prediction, torch.where(mask, target, 0.0), mask)
    return masked_mean(huber, mask) + gradient_weight * gradient


def normals_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the angle between predicted and true normals (section III B 1), (N, 3, H, W), any length."""
    return masked_mean(1 - F.cosine_similarity(prediction, target, dim=1)[:, None], mask)


def edges_loss(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy with logits (section III B 1); `target` 0 or 1, (N, 1, H, W)."""
    values = F.binary_cross_entropy_with_logits(logits, torch.where(mask, target, 0.0), reduction="none")
    return masked_mean(values, mask)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: focal lengths and principal point, each (x, y) in pixels of the depth map."""

    focal: tuple[float, float]
    center: tuple[float, float]


def normals_of_depth(depth: Tensor, camera: Camera | None = None) -> Tensor:
    """Unit normals of a depth map by finite differences (equation 16a): (N, 1, H, W) to (N, 3, H-1, W-1).

    The paper's form, (-dx d, -dy d, 1) with differences between neighboring pixels, knows no camera: where one
    pixel is millimeters wide every surface seems to face it. With a camera, it is the normal of the plane in space
    through the pixel and its right and lower neighbor.
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
    # The product of two pixel steps is around 1e-5 square meters: the usual epsilon of normalization is too near.
    return F.normalize(torch.linalg.cross(right, down, dim=1), dim=1, eps=1e-20)


def depth_normal_consistency(depth: Tensor, normals: Tensor, camera: Camera | None = None) -> Tensor:
    """1 - cosine between predicted normals and those of the predicted depth (equations 16a and 16b).

    Args:
        depth: (N, 1, H, W) meters.
        normals: (N, 3, H, W), in the convention of `m2h_deploy.data.frame`.
        camera: see `normals_of_depth`.
    """
    return (1 - F.cosine_similarity(normals[..., :-1, :-1], normals_of_depth(depth, camera), dim=1)).mean()


def edge_segmentation_consistency(logits: Tensor, edges: Tensor) -> Tensor:
    """|grad S - E|, mean over pixels (equation 17).

    The paper leaves open how the C logits of a pixel meet its one edge value. Here grad S is the length of (dS/dx,
    dS/dy), differences to the right and lower neighbor, averaged over classes, and E the edge probability.

    Args:
        logits: segmentation logits S, (N, C, H, W).
        edges: edge logits, (N, 1, H, W).
    """
    dx = logits[..., :-1, 1:] - logits[..., :-1, :-1]
    dy = logits[..., 1:, :-1] - logits[..., :-1, :-1]
    # The square root has no gradient at 0, which flat logits reach.
    length = (dx.square() + dy.square() + 1e-12).sqrt().mean(dim=1, keepdim=True)
    return (length - torch.sigmoid(edges[..., :-1, :-1])).abs().mean()
