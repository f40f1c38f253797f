"""Distillation from a larger M2H: the smaller network also learns from the larger one's answers.

The paper calls M2H-small a distilled variant and does not say how. Here each task's own loss is taken with the
teacher's answer in the place of the label; semantics use the divergence of the two class distributions (Hinton et
al. 2015).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

#: Softens both class distributions.
TEMPERATURE = 2.0


def distillation_losses(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars by task: how far the student's outputs are from the teacher's, both (N, C, H, W), over all pixels."""
    return {
        "depth": F.huber_loss(student["depth"], teacher["depth"]),
        "semantics": _divergence(student["semantics"], teacher["semantics"]),
        "normals": (1 - F.cosine_similarity(student["normals"], teacher["normals"], dim=1)).mean(),
        "edges": F.binary_cross_entropy_with_logits(student["edges"], torch.sigmoid(teacher["edges"])),
    }


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence per pixel, times T^2 so that its gradient does not shrink with T."""
    ours, theirs = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (student, teacher))
    pixels = student.shape[0] * student.shape[2] * student.shape[3]
    return TEMPERATURE**2 * F.kl_div(ours, theirs, reduction="sum", log_target=True) / pixels
