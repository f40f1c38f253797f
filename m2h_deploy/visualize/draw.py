"""Draw predictions as pictures for visual inspection."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from m2h_deploy.bundle.manifest import Classes
from m2h_deploy.runtime.postprocess import Prediction

Picture = NDArray[np.uint8]

_BACKGROUND = (28, 26, 24)
_TEXT = (235, 232, 228)
_EDGE = (80, 230, 255)
_AROUND = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0)]
_FONT = cv2.FONT_HERSHEY_SIMPLEX

#: Largest width of a pane as a multiple of its height (a strip of 16 x 16384 pixels would get 300,000 columns), and the
#: smallest in pixels.
_WIDEST, _NARROWEST = 4, 160


def draw_depth(depth: NDArray[np.float32], near: float, far: float) -> Picture:
    """Draw depth in turbo colors, red near and blue far, BGR (H, W, 3); pixels without depth are black."""
    share = np.clip((depth - near) / max(far - near, 1e-6), 0, 1)
    colored = cv2.applyColorMap((255 * (1 - share)).astype(np.uint8), cv2.COLORMAP_TURBO)
    colored[depth <= 0] = 0
    return np.asarray(colored, np.uint8)


def draw_semantics(labels: NDArray[np.uint8], classes: Classes) -> Picture:
    """Draw labels in the classes' colors, BGR (H, W, 3); labels beyond the list are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes.palette)] = np.array(classes.palette, np.uint8)[:, ::-1]
    return table[labels]


def draw_normals(normals: NDArray[np.float32]) -> Picture:
    """Draw (n + 1) / 2 as red, green, blue; BGR (H, W, 3)."""
    return ((normals[:, :, ::-1] + 1) * 127.5).clip(0, 255).astype(np.uint8)


def draw_edges(edges: NDArray[np.float32]) -> Picture:
    """Draw edges white on black, BGR (H, W, 3)."""
    return np.repeat((np.clip(edges, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def draw_prediction(image: Picture, prediction: Prediction, classes: Classes) -> Picture:
    """Draw input, depth, labels, normals, edges and the legend as one picture, BGR; absent tasks are left out.

    `image` is uint8 (H, W, 3) BGR; a prediction of another size is scaled to the pane.
    """
    scaled = _resized(image, _pane_size(image, 330))
    panes = [_pane("input", scaled), *_task_panes(scaled, prediction, classes, None)]
    if prediction.semantics is not None:
        panes.append(_legend(prediction.semantics, classes, panes[0].shape[0], panes[0].shape[1]))
    return grid(panes)


def draw_panes(
    image: Picture,
    prediction: Prediction,
    classes: Classes,
    *,
    pane_height: int = 360,
    span: tuple[float, float] | None = None,
) -> Picture:
    """Draw the four tasks in a 2 x 2 grid for a video, BGR; absent tasks are black.

    Labels and edges are drawn over the input. The picture's size depends only on `image` and `pane_height`. `span` is
    the depth range in meters of the colors; without it each frame has its own, and colors flicker.
    """
    scaled = _resized(image, _pane_size(image, pane_height))
    panes = _task_panes(scaled, prediction, classes, span, names=True)
    blank = np.full_like(_pane("", scaled), _BACKGROUND)
    picture = grid([*panes, *[blank] * (4 - len(panes))], columns=2)
    # Video encoders need even sides.
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


def _task_panes(
    scaled: Picture,
    prediction: Prediction,
    classes: Classes,
    span: tuple[float, float] | None,
    *,
    names: bool = False,
) -> list[Picture]:
    """Draw one pane of the size of `scaled` per task of the prediction; `names` writes class names on their regions."""
    panes = []
    size = (scaled.shape[1], scaled.shape[0])
    if prediction.depth is not None:
        near, far = span or depth_span(prediction.depth)
        colors = _resized(draw_depth(prediction.depth, near, far), size)
        panes.append(_pane("depth", _with_scale(colors, near, far)))
    if prediction.semantics is not None:
        labels = np.asarray(cv2.resize(prediction.semantics, size, interpolation=cv2.INTER_NEAREST), np.uint8)
        mixed = np.asarray(cv2.addWeighted(scaled, 0.4, draw_semantics(labels, classes), 0.6, 0), np.uint8)
        if names:
            _write_names(mixed, labels, classes)
        panes.append(_pane("semantics", mixed))
    if prediction.normals is not None:
        panes.append(_pane("surface normals", _resized(draw_normals(prediction.normals), size)))
    if prediction.edges is not None:
        strength = np.asarray(cv2.resize(np.nan_to_num(prediction.edges).clip(0, 1), size))
        gray = np.repeat(cv2.cvtColor(scaled, cv2.COLOR_BGR2GRAY)[:, :, None], 3, axis=2) * 0.35
        lit = gray + strength[:, :, None] * (np.array(_EDGE, np.float32) - gray)
        panes.append(_pane("edges", lit.clip(0, 255).astype(np.uint8)))
    return panes


def depth_span(depth: NDArray[np.float32]) -> tuple[float, float]:
    """Return the depth range of the colors: the 2nd and 98th percentile of the valid pixels, in meters."""
    valid = depth[depth > 0]
    if valid.size == 0:
        return 0.0, 1.0
    near, far = np.percentile(valid, (2, 98))
    return float(near), max(float(far), float(near) + 1e-3)


def grid(panes: list[Picture], columns: int = 3) -> Picture:
    """Arrange panes of one size in rows of `columns`."""
    columns = min(columns, len(panes))
    blank = np.full_like(panes[0], _BACKGROUND)
    padded = panes + [blank] * (-len(panes) % columns)
    rows = [np.hstack(padded[start : start + columns]) for start in range(0, len(padded), columns)]
    return np.vstack(rows)


def fit(picture: Picture, height: int, width: int) -> tuple[int, int]:
    """Return width and height of `picture` scaled to `height` rows, or to `width` columns if it would be wider."""
    rows, columns = picture.shape[:2]
    if columns * height <= width * rows:
        return max(1, round(columns * height / rows)), height
    return width, max(1, round(rows * width / columns))


def _pane_size(image: Picture, height: int) -> tuple[int, int]:
    return fit(image, height, _WIDEST * height)


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    larger = size[0] > picture.shape[1]
    kind = cv2.INTER_LINEAR if larger else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, size, interpolation=kind), np.uint8)


def _pane(title: str, picture: Picture) -> Picture:
    """Return `picture` below a title bar; a narrow one is padded, so that the title is readable."""
    right = 8 + max(0, _NARROWEST - picture.shape[1])
    bar = np.full((34, picture.shape[1], 3), _BACKGROUND, np.uint8)
    framed = np.pad(np.vstack([bar, picture]), ((0, 8), (0, right), (0, 0)), constant_values=_BACKGROUND[0])
    _text(framed, title, (10, 23), 0.6, outline=False)
    return framed


def _text(picture: Picture, text: str, at: tuple[int, int], scale: float, *, outline: bool = True) -> None:
    """Write white text on a picture, by default with a dark outline that keeps it legible on any color."""
    # Shifted copies, because a thicker stroke changes the widths of letters.
    for x, y in _AROUND if outline else ():
        cv2.putText(picture, text, (at[0] + x, at[1] + y), _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(picture, text, at, _FONT, scale, _TEXT, 1, cv2.LINE_AA)


def _with_scale(picture: Picture, near: float, far: float) -> Picture:
    """Return `picture` with a bar of the depth colors at its right side, the nearest at the bottom as on the floor."""
    height, width = picture.shape[:2]
    bar, top, left = max(height - 60, 20), 30, width - 26
    if width < 120 or height < 90:
        return picture
    levels = np.linspace(far, near, bar, dtype=np.float32)[:, None]
    picture = picture.copy()
    picture[top : top + bar, left : left + 14] = draw_depth(np.maximum(levels, 1e-6), near, far)[: height - top]
    cv2.rectangle(picture, (left - 1, top - 1), (left + 14, top + bar), _TEXT, 1)
    for share in (0.0, 0.5, 1.0):
        text = f"{far + share * (near - far):.1f} m"
        text_width = cv2.getTextSize(text, _FONT, 0.5, 1)[0][0]
        y = int(top + share * (bar - 1))
        cv2.line(picture, (left - 5, y), (left - 1, y), _TEXT, 1)
        _text(picture, text, (left - 9 - text_width, y + 5), 0.5)
    return picture


def _write_names(picture: Picture, labels: NDArray[np.uint8], classes: Classes) -> None:
    """Write each class's name in the widest part of its largest region, except classes under 1 % of the picture."""
    counts = np.bincount(labels.reshape(-1), minlength=256)
    for label in np.flatnonzero(counts > 0.01 * labels.size):
        mask = np.pad((labels == label).astype(np.uint8), 1)
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        _, _, _, (x, y) = cv2.minMaxLoc(distance)
        name = classes.names[label] if label < len(classes.names) else str(label)
        (text_width, text_height), _ = cv2.getTextSize(name, _FONT, 0.5, 1)
        left = int(np.clip(x - 1 - text_width / 2, 2, max(2, picture.shape[1] - text_width - 2)))
        _text(picture, name, (left, int(np.clip(y - 1 + text_height / 2, 14, picture.shape[0] - 4))), 0.5)


def _legend(labels: NDArray[np.uint8], classes: Classes, height: int, width: int) -> Picture:
    """Draw the classes that cover most of the picture, with their share."""
    picture = np.full((height, width, 3), _BACKGROUND, np.uint8)
    _text(picture, "classes by area", (10, 23), 0.6, outline=False)
    counts = np.bincount(labels.reshape(-1), minlength=256)
    rows = max(1, (height - 44) // 26)
    order = [int(label) for label in np.argsort(-counts, kind="stable") if counts[label]]
    shown = order if len(order) <= rows else order[: rows - 1]
    for row, label in enumerate(shown):
        y = 44 + 26 * row
        named = label < len(classes.names)
        red, green, blue = classes.palette[label] if named else (0, 0, 0)
        cv2.rectangle(picture, (12, y), (32, y + 16), (blue, green, red), -1)
        cv2.rectangle(picture, (12, y), (32, y + 16), (150, 150, 150), 1)
        _text(picture, classes.names[label] if named else str(label), (44, y + 14), 0.5, outline=False)
        share = f"{100 * counts[label] / labels.size:.1f} %"
        share_width = cv2.getTextSize(share, _FONT, 0.5, 1)[0][0]
        _text(picture, share, (width - 16 - share_width, y + 14), 0.5, outline=False)
    if len(shown) < len(order):
        _text(picture, f"and {len(order) - len(shown)} more", (44, 44 + 26 * len(shown) + 14), 0.5, outline=False)
    return picture
