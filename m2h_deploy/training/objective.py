"""Losses of one stage, from a network's outputs and a batch's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from m2h_deploy.tasks import TASKS
from m2h_deploy.training import losses
from m2h_deploy.training.batches import Batch
from m2h_deploy.training.config import StageConfig

#: Tasks whose losses dynamic weight averaging balances (paper, section III C).
BALANCED = TASKS

_DEPTH_LOSSES: dict[str, Callable[..., Tensor]] = {
    "indoor": losses.indoor_depth_loss,
    "outdoor": losses.outdoor_depth_loss,
    "relative": losses.relative_depth_loss,
}


def task_losses(outputs: Mapping[str, Tensor], batch: Batch, stage: StageConfig, depth_loss: str) -> dict[str, Tensor]:
    """Compute the four task losses: equations 14 and 15, cosine, cross-entropy.

    Args:
        outputs: the network's outputs in float32, (N, C, H, W) by task, H x W as the labels.
        batch: the labels.
        stage: weights of the terms.
        depth_loss: `indoor`, `outdoor` or `relative`.

    Returns:
        Scalars by task.
    """
    depth = _DEPTH_LOSSES[depth_loss]
    return {
        "depth": depth(outputs["depth"], batch.depth, batch.depth > 0, gradient_weight=stage.gradient_weight),
        "semantics": losses.segmentation_loss(
            outputs["semantics"], batch.semantics, alpha=stage.alpha, beta=stage.beta
        ),
        "normals": losses.normals_loss(
            outputs["normals"], batch.normals, (batch.normals != 0).any(dim=1, keepdim=True)
        ),
        "edges": losses.edges_loss(outputs["edges"], batch.edges, batch.edges >= 0),
    }


def consistency_losses(
    outputs: Mapping[str, Tensor], stage: StageConfig, camera: losses.Camera | None
) -> dict[str, Tensor]:
    """Compute the two cross-task losses (equations 16 and 17).

    Args:
        outputs: the network's outputs in float32, (N, C, H, W) by task.
        stage: whether it uses them (`consistency` above 0).
        camera: camera of the outputs; None for the paper's form.

    Returns:
        Scalars `depth_normals` and `edge_semantics`; empty if the stage does not use them.
    """
    if not stage.consistency:
        return {}
    return {
        "depth_normals": losses.depth_normal_consistency(outputs["depth"], outputs["normals"], camera),
        "edge_semantics": losses.edge_segmentation_consistency(outputs["semantics"], outputs["edges"]),
    }
