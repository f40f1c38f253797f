"""Evaluate a network on labeled frames, and format the result as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2h_deploy.data import Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.metrics import DepthMetric, EdgesMetric, Metric, NormalsMetric, SemanticsMetric
from m2h_deploy.model import M2H
from m2h_deploy.runtime.preprocess import PRESETS, Normalization
from m2h_deploy.training.batches import normalized
from m2h_deploy.training.progress import Progress, silent
from m2h_deploy.training.speed import CPUAttention

#: Rows of the table: task, key in the result, heading, factor, decimals.
_COLUMNS = (
    ("semantics", "miou_present", "mIoU (classes present)", 100.0, 2),
    ("semantics", "pixel_accuracy", "pixel accuracy", 100.0, 2),
    ("depth", "rmse", "depth RMSE, m", 1.0, 4),
    ("depth", "abs_rel", "depth abs rel", 1.0, 4),
    ("depth", "delta1", "depth delta < 1.25", 100.0, 2),
    ("normals", "mean", "normals mean error, degrees", 1.0, 2),
    ("normals", "within_11.25", "normals within 11.25 degrees", 100.0, 2),
    ("edges", "odsF", "edges odsF", 100.0, 2),
)


def evaluate(
    model: M2H,
    frames: Iterable[Frame],
    *,
    preset: str = "published",
    batch_size: int = 8,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Compute the metrics of a network on labeled frames.

    A frame counts for the tasks that it has labels for. The model runs in float32 on its own device, and its depth is
    clamped to its range. Its training mode is restored afterwards.

    Args:
        model: the network.
        frames: labeled frames of one size.
        preset: normalization that the network was trained with.
        batch_size: frames per forward pass.
        progress: called after each batch.

    Returns:
        Figures of each task by name (see the metrics' `compute`), and `frames`, the number of frames.

    Raises:
        M2HError: there are no frames, or they differ in size.
    """
    metrics: dict[str, Metric] = {
        "depth": DepthMetric(clamp=(model.config.min_depth, model.config.max_depth)),
        "semantics": SemanticsMetric(num_outputs=model.config.num_classes),
        "normals": NormalsMetric(),
        "edges": EdgesMetric(),
    }
    count, training = 0, model.training
    model.eval()
    try:
        total = len(frames) if isinstance(frames, Sized) else None
        for group in _groups(frames, batch_size):
            for frame, outputs in zip(group, _predict(model, group, PRESETS[preset]), strict=True):
                _update(metrics, frame, outputs)
            count += len(group)
            progress("evaluation", count, total, "")
    finally:
        model.train(training)
    if not count:
        raise M2HError("no frames to evaluate on")
    return {"frames": count, **{name: metric.compute() for name, metric in metrics.items()}}


def _groups(frames: Iterable[Frame], size: int) -> Iterable[list[Frame]]:
    group: list[Frame] = []
    for frame in frames:
        if group and frame.image.shape != group[0].image.shape:
            size_text = f"{frame.height}x{frame.width}"
            raise M2HError(f"frame {frame.name} is {size_text}, others are not: evaluate one size at a time")
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _predict(model: M2H, group: list[Frame], normalization: Normalization) -> list[dict[str, np.ndarray]]:
    device = next(model.parameters()).device
    stacked = np.stack([np.ascontiguousarray(frame.image[..., ::-1]) for frame in group])
    image = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad(), CPUAttention():
        outputs = model(normalized(image, normalization))
    answers: dict[str, Tensor] = {
        "depth": outputs["depth"][:, 0],
        "semantics": outputs["semantics"].argmax(dim=1),
        "normals": outputs["normals"].permute(0, 2, 3, 1),
        "edges": torch.sigmoid(outputs["edges"][:, 0]),
    }
    arrays = {name: answer.cpu().numpy() for name, answer in answers.items()}
    return [{name: array[i] for name, array in arrays.items()} for i in range(len(group))]


def _update(metrics: dict[str, Metric], frame: Frame, outputs: dict[str, np.ndarray]) -> None:
    for name, metric in metrics.items():
        label = getattr(frame, name)
        if label is not None:
            metric.update(outputs[name], label)


def table(result: dict[str, Any]) -> str:
    """Format the result of `evaluate` as a Markdown table; shares are in percent.

    If the result has another result under `before`, that one gets a column.
    """
    results = [result, *([result["before"]] if "before" in result else [])]
    headings = ["value"] if len(results) == 1 else ["INT8, fine-tuned", "INT8, before"]
    lines = ["| metric | " + " | ".join(headings) + " |", "| --- |" + " --- |" * len(results)]
    for task, key, heading, factor, decimals in _COLUMNS:
        if task in result:
            values = " | ".join(f"{factor * one[task][key]:.{decimals}f}" for one in results)
            lines.append(f"| {heading} | {values} |")
    return "\n".join([*lines, "| frames | " + " | ".join(str(one["frames"]) for one in results) + " |"])
