"""Pictures of predictions: what a person looks at before trusting a number."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle import Classes
from m2h_deploy.postprocess import Prediction

Picture = NDArray[np.uint8]

_BACKGROUND = (28, 26, 24)
_TEXT = (235, 232, 228)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_depth(depth: NDArray[np.float32], near: float, far: float) -> Picture:
    """Turbo colours, red near and blue far, BGR (H, W, 3); pixels without depth are black."""
    share = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    coloured = cv2.applyColorMap((255 * (1 - share)).astype(np.uint8), cv2.COLORMAP_TURBO)
    coloured[depth <= 0] = 0
    return np.asarray(coloured, np.uint8)


def draw_semantics(labels: NDArray[np.uint8], classes: Classes) -> Picture:
    """The classes' colours, BGR (H, W, 3); labels beyond the list are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes.palette)] = np.array(classes.palette, np.uint8)[:, ::-1]
    return table[labels]


def draw_normals(normals: NDArray[np.float32]) -> Picture:
    """(n + 1) / 2 as red, green, blue, BGR (H, W, 3)."""
    return ((normals[:, :, ::-1] + 1) * 127.5).clip(0, 255).astype(np.uint8)


def draw_edges(edges: NDArray[np.float32]) -> Picture:
    """White on black, BGR (H, W, 3)."""
    return np.repeat((np.clip(edges, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def draw_prediction(image: Picture, prediction: Prediction, classes: Classes, *, pane_height: int = 300) -> Picture:
    """Input, depth, labels, normals, edges and the legend as one picture, BGR; absent tasks are left out."""
    panes = [_pane("input", image, pane_height)]
    if prediction.depth is not None:
        near, far = depth_span(prediction.depth)
        title = f"depth  {near:.2f} m (red) to {far:.2f} m (blue)"
        panes.append(_pane(title, draw_depth(prediction.depth, near, far), pane_height))
    if prediction.semantics is not None:
        mixed = cv2.addWeighted(image, 0.4, draw_semantics(prediction.semantics, classes), 0.6, 0)
        panes.append(_pane("semantics", np.asarray(mixed, np.uint8), pane_height))
    if prediction.normals is not None:
        panes.append(_pane("surface normals", draw_normals(prediction.normals), pane_height))
    if prediction.edges is not None:
        panes.append(_pane("edges", draw_edges(prediction.edges), pane_height))
    if prediction.semantics is not None:
        panes.append(_legend(prediction.semantics, classes, panes[0].shape[0], panes[0].shape[1]))
    return grid(panes)


def depth_span(depth: NDArray[np.float32]) -> tuple[float, float]:
    """Nearest and farthest depth worth a colour: the 2nd and 98th percentile of the valid pixels, in metres."""
    valid = depth[depth > 0]
    if valid.size == 0:
        return 0.0, 1.0
    near, far = np.percentile(valid, (2, 98))
    return float(near), max(float(far), float(near) + 1e-3)


def grid(panes: list[Picture], columns: int = 3) -> Picture:
    """Panes of one size in rows of `columns`."""
    columns = min(columns, len(panes))
    blank = np.full_like(panes[0], _BACKGROUND)
    padded = panes + [blank] * (-len(panes) % columns)
    rows = [np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)]
    return np.vstack(rows)


def _pane(title: str, picture: Picture, height: int) -> Picture:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    bar = np.full((26, width, 3), _BACKGROUND, np.uint8)
    cv2.putText(bar, title, (8, 18), _FONT, 0.45, _TEXT, 1, cv2.LINE_AA)
    return np.pad(np.vstack([bar, picture]), ((0, 6), (0, 6), (0, 0)), constant_values=_BACKGROUND[0])


def _legend(labels: NDArray[np.uint8], classes: Classes, height: int, width: int) -> Picture:
    """The classes that cover most of the picture, with their share."""
    picture = np.full((height, width, 3), _BACKGROUND, np.uint8)
    counts = np.bincount(labels.reshape(-1), minlength=256)
    rows = max(1, (height - 20) // 22)
    order = [int(label) for label in np.argsort(-counts) if counts[label]][:rows]
    for row, label in enumerate(order):
        y = 14 + 22 * row
        named = label < len(classes.names)
        red, green, blue = classes.palette[label] if named else (0, 0, 0)
        cv2.rectangle(picture, (10, y), (28, y + 14), (blue, green, red), -1)
        cv2.rectangle(picture, (10, y), (28, y + 14), (110, 110, 110), 1)
        share = 100 * counts[label] / labels.size
        text = f"{classes.names[label] if named else label}  {share:.1f}%"
        cv2.putText(picture, text, (38, y + 12), _FONT, 0.42, _TEXT, 1, cv2.LINE_AA)
    return picture
