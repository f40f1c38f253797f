"""A network on labeled frames: the project's metrics, and the table that shows them, in a file of the reader's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m2h_deploy.data import Frame
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import check_writable, write_text
from m2h_deploy.metrics import DepthMetric, EdgesMetric, Metric, NormalsMetric, SemanticsMetric
from m2h_deploy.model import M2H
from m2h_deploy.runtime.preprocess import PRESETS, Normalization
from m2h_deploy.training.batches import normalized
from m2h_deploy.training.progress import progress_bar
from m2h_deploy.training.speed import CPUAttention

#: Figures of the table: task, key in the result, heading, factor, decimals.
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

# What a Markdown file has around the table that `replace_table` writes.
_BEGIN, _END = "<!-- evaluation -->", "<!-- end of evaluation -->"


def evaluate(
    model: M2H, frames: Iterable[Frame], *, preset: str = "published", batch_size: int = 8, edges: bool = True
) -> dict[str, Any]:
    """Metrics of `model`, in float32 on its own device, by task, and `frames`, how many were seen.

    Frames must be of one size; a frame counts for the tasks that it has labels for. Depth is limited to the model's
    range. `preset` is how images were normalized in training. `edges=False` leaves out the matching of boundaries,
    which takes longest. The mode of the model is put back. Raises M2HError for no frames or frames of different sizes.
    """
    metrics: dict[str, Metric] = {
        "depth": DepthMetric(clamp=(model.config.min_depth, model.config.max_depth)),
        "semantics": SemanticsMetric(num_outputs=model.config.num_classes),
        "normals": NormalsMetric(),
    }
    if edges:
        metrics["edges"] = EdgesMetric()
    count, training = 0, model.training
    model.eval()
    try:
        with progress_bar() as bar:
            total = len(frames) if isinstance(frames, Sized) else None
            task = bar.add_task("evaluation", total=total, note="")
            for group in _groups(frames, batch_size):
                for frame, outputs in zip(group, _predict(model, group, PRESETS[preset]), strict=True):
                    _update(metrics, frame, outputs)
                count += len(group)
                bar.update(task, completed=count)
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
    """The result of `evaluate` as a Markdown table; shares are in percent.

    With `before`, another such result in it, that one has a column of its own.
    """
    results = [result, *([result["before"]] if "before" in result else [])]
    headings = ["value"] if len(results) == 1 else ["INT8, fine-tuned", "INT8, before"]
    lines = ["| metric | " + " | ".join(headings) + " |", "| --- |" + " --- |" * len(results)]
    for task, key, heading, factor, decimals in _COLUMNS:
        if task in result:
            values = " | ".join(f"{factor * one[task][key]:.{decimals}f}" for one in results)
            lines.append(f"| {heading} | {values} |")
    return "\n".join([*lines, "| frames | " + " | ".join(str(one["frames"]) for one in results) + " |"])


def replace_table(file: str | os.PathLike[str], result: dict[str, Any]) -> Path:
    """Put `table(result)` between the two marks of a Markdown file, each a line of its own.

    The marks are `<!-- evaluation -->` and `<!-- end of evaluation -->`. The rest of the text stays as it is.
    Raises M2HError for a file that cannot be read or written, or that has not each mark once, in this order.
    """
    before, after = _around_marks(file)
    return write_text(file, f"{before}{table(result)}\n{after}")


def check_marks(file: str | os.PathLike[str]) -> None:
    """Raises the M2HError of `replace_table` for a file it would refuse: before the evaluation, not after it."""
    _around_marks(check_writable(file))


def _around_marks(file: str | os.PathLike[str]) -> tuple[str, str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise M2HError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise M2HError(f"cannot read {file}: it is not UTF-8 text") from None
    lines = text.splitlines(keepends=True)
    begins, ends = ([i for i, line in enumerate(lines) if line.strip() == mark] for mark in (_BEGIN, _END))
    if len(begins) != 1 or len(ends) != 1 or begins > ends:
        raise M2HError(f"{file} has no place for the table: it needs one line '{_BEGIN}' and below it one '{_END}'")
    return "".join(lines[: begins[0] + 1]), "".join(lines[ends[0] :])
