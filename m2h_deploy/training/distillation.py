"""Distillation from a larger M2H: the smaller network also learns from the larger network's outputs.

The paper calls M2H-small a distilled variant and does not describe the method. Here the loss of each task is computed
with the teacher's output in place of the label. For semantics it is the divergence of the two class distributions
(Hinton et al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

#: Softmax temperature of both class distributions.
TEMPERATURE = 2.0


def distillation_losses(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute how far the student's outputs are from the teacher's, averaged over all pixels.

    Args:
        student: outputs (N, C, H, W) by task.
        teacher: outputs of the same shapes.

    Returns:
        Scalars by task.
    """
    return {
        "depth": F.huber_loss(student["depth"], teacher["depth"]),
        "semantics": _divergence(student["semantics"], teacher["semantics"]),
        "normals": (1 - F.cosine_similarity(student["normals"], teacher["normals"], dim=1)).mean(),
        "edges": F.binary_cross_entropy_with_logits(student["edges"], torch.sigmoid(teacher["edges"])),
    }


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence per pixel, times T^2 so that its gradient does not shrink with T."""
    ours, theirs = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    pixels = student.shape[0] * student.shape[2] * student.shape[3]
    return TEMPERATURE**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True) / pixels
