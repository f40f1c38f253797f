"""Pictures of maps, drawn without a display: the mesh from a raised corner, and its errors from above."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Pose
from m2h_deploy.errors import missing_extra
from m2h_deploy.mapping.mesh import Points, SemanticMesh, label_colors
from m2h_deploy.mapping.open3d import import_open3d

Picture = npt.NDArray[np.uint8]

#: Height of the view above the horizon, degrees.
_RAISED = 52.0
_BACKGROUND, _UNLABELED = 255, 128

#: Up is the axis of the world that is within this angle of the cameras' mean up, degrees.
_UPRIGHT = 35.0

#: Points this far above the highest camera are taken for the ceiling, meters.
_HEADROOM = 0.4
#: Side of a cell of the error map, meters, and the share of the cells whose error its colors span.
_CELL, _SPAN = 0.05, 0.95


def up_of(poses: Sequence[Pose]) -> Points:
    """Return the direction that is up in the world, a unit vector (3,): the nearest axis, or the cameras' mean."""
    mean = -np.sum([pose[:3, 1] for pose in poses], axis=0)
    mean = mean / max(float(np.linalg.norm(mean)), 1e-12)
    axis = int(np.abs(mean).argmax())
    if abs(mean[axis]) >= np.cos(np.radians(_UPRIGHT)):
        return np.eye(3)[axis] * np.sign(mean[axis])
    return np.asarray(mean)


def _level(up: Points) -> Points:
    """Return the rotation (3, 3) from the world to axes whose last is up; the world itself where z is up."""
    up = up / np.linalg.norm(up)
    start = np.eye(3)[int(np.abs(up).argmin())] if abs(up[0]) > 0.9 else np.eye(3)[0]
    across = start - up * (start @ up)
    across /= np.linalg.norm(across)
    return np.stack([across, np.cross(up, across), up])


def picture_of_mesh(
    mesh: SemanticMesh,
    palette: npt.NDArray[np.uint8],
    up: Points,
    size: tuple[int, int] = (600, 800),
    *,
    around: SemanticMesh | None = None,
) -> Picture:
    """Draw a mesh in the colors of its classes, in parallel projection from a raised corner.

    Only surfaces that face the viewer are drawn, so that one looks through the near walls and the ceiling into a room.

    Args:
        mesh: The mesh.
        palette: Colors of the classes, RGB, uint8 (C, 3).
        up: Direction that is up in the world, (3,).
        size: Height and width of the picture, pixels.
        around: Mesh that the picture is centered on, so that pictures of several maps show the same place.

    Returns:
        uint8 (height, width, 3), BGR; white without surface.
    """
    picture = np.full((*size, 3), _BACKGROUND, np.uint8)
    framed = around if around is not None and len(around.triangles) else mesh
    axes = _corner(framed.normals(), up)
    normals = mesh.normals()
    shown = normals @ axes[2] < 0
    extent = framed.sample(0.1).points @ axes.T
    if not shown.any() or len(extent) == 0:
        return picture
    low, high = np.percentile(extent, (0.1, 99.9), axis=0)
    scale = 1.1 * max((high[0] - low[0]) / size[1], (high[1] - low[1]) / size[0])
    triangle, shares = _first_hits(mesh, shown, (low + high) / 2, axes, scale / 2, (2 * size[0], 2 * size[1]))
    hit = triangle >= 0
    corner = np.take_along_axis(mesh.triangles[triangle[hit]], shares[hit].argmax(axis=1)[:, None], axis=1)[:, 0]
    colors = np.full((len(corner), 3), _UNLABELED, np.uint8)
    if mesh.labels is not None:
        colors = label_colors(mesh.labels[corner], palette)
    light = axes.T @ np.array([0.35, 0.45, 0.82])  # from the upper left behind the viewer
    normal = normals[triangle[hit]]
    facing = -(normal @ light) / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    large = np.full((*hit.shape, 3), _BACKGROUND, np.uint8)
    large[hit] = (colors[:, ::-1] * (0.65 + 0.35 * np.clip(facing, 0, 1))[:, None]).astype(np.uint8)
    return np.asarray(cv2.resize(large, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def _corner(normals: Points, up: Points) -> Points:
    """Return the rotation from the world to right, down and forward, at the corner from which most surface is seen.

    The lengths of `normals`, (M, 3), are proportional to areas.
    """
    level, raised = _level(up), np.radians(_RAISED)
    views = []
    for x, y in ((1, 1), (1, -1), (-1, -1), (-1, 1)):
        forward = np.array([x, y, 0]) / np.sqrt(2) * np.cos(raised) - np.array([0, 0, np.sin(raised)])
        right = np.array([y, -x, 0]) / np.sqrt(2)
        views.append(np.stack([right, np.cross(forward, right), forward]) @ level)
    return max(views, key=lambda axes: float(np.maximum(-normals @ axes[2], 0).sum()))


def _first_hits(
    mesh: SemanticMesh,
    shown: npt.NDArray[np.bool_],
    middle: Points,
    axes: Points,
    scale: float,
    size: tuple[int, int],
) -> tuple[npt.NDArray[np.int64], Points]:
    """Cast parallel rays at the chosen triangles.

    Args:
        mesh: The mesh.
        shown: Which of its triangles can be hit.
        middle: Center of the picture, in the picture's axes.
        axes: Right, down and forward in the world, (3, 3).
        scale: Meters per pixel.
        size: Height and width, pixels.

    Returns:
        The triangle that each pixel shows, int64 (H, W), -1 for none, and the shares of its three corners, (H, W, 3).
    """
    open3d = import_open3d()
    scene = open3d.t.geometry.RaycastingScene()
    places = (mesh.vertices @ axes.T - middle).astype(np.float32)
    triangles = mesh.triangles[shown].astype(np.uint32)
    scene.add_triangles(open3d.core.Tensor(places), open3d.core.Tensor(triangles))
    rays = np.zeros((*size, 6), np.float32)
    rays[..., 0] = (np.arange(size[1]) - (size[1] - 1) / 2) * scale
    rays[..., 1] = ((np.arange(size[0]) - (size[0] - 1) / 2) * scale)[:, None]
    rays[..., 2] = places[:, 2].min() - 1
    rays[..., 5] = 1
    found = scene.cast_rays(open3d.core.Tensor(rays))
    number = found["primitive_ids"].numpy().astype(np.int64)
    hit = number < len(triangles)
    second, third = np.moveaxis(found["primitive_uvs"].numpy().astype(np.float64), -1, 0)
    triangle = np.full(size, -1, np.int64)
    triangle[hit] = np.flatnonzero(shown)[number[hit]]
    return triangle, np.stack([1 - second - third, second, third], axis=-1)


def error_from_above(
    points: Points, distances: npt.NDArray[np.float64], trajectory: Points, up: Points, *, most: float | None = None
) -> Picture:
    """Draw a map's mean distance from the true surface in each column of space, with the path of the camera.

    Points well above the highest camera are left out: they are the ceiling.

    Args:
        points: Points on the map, float64 (N, 3), meters.
        distances: Their distances from the true surface, (N,), meters.
        trajectory: Positions of the camera in order of time, (M, 3).
        up: Direction that is up in the world, (3,).
        most: Distance of the last color, meters, so that pictures of several maps can be compared; None: that of this
            map.

    Returns:
        uint8 (H, W, 3), BGR.

    Raises:
        M2HError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "report", "the picture of a map's errors", error=error) from None
    level = _level(up)
    places, path = points @ level.T, trajectory @ level.T
    keep = np.isfinite(distances)
    if len(path):
        keep &= places[:, 2] < path[:, 2].max() + _HEADROOM
    figure = Figure(figsize=(6.4, 5.6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if keep.any():
        means, span = _columns(places[keep], distances[keep])
        known = means[np.isfinite(means)]
        top = most if most is not None else max(float(np.quantile(known, _SPAN)), 0.01)
        drawn = axes.imshow(means.T * 100, origin="lower", extent=span, cmap="viridis", vmin=0, vmax=top * 100)
        beyond = "max" if known.max() > top else "neither"
        figure.colorbar(drawn, ax=axes, shrink=0.85, extend=beyond, label="mean distance from the true surface, cm")
    if len(path):
        axes.plot(path[:, 0], path[:, 1], color="#d1495b", lw=1.2, label="camera")
        axes.plot(*path[0, :2], "o", color="#d1495b", ms=5, label="start")
        axes.legend(loc="upper right", fontsize=8)
    axes.set_aspect("equal")
    axes.set_xlabel("m")
    axes.set_ylabel("m")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), np.uint8)[..., 2::-1])


def _columns(places: Points, distances: npt.NDArray[np.float64]) -> tuple[Points, tuple[float, float, float, float]]:
    """Average distances by column: (X, Y), NaN without points, and its borders; stray points are left out."""
    low, high = np.percentile(places[:, :2], (0.2, 99.8), axis=0)
    count = np.maximum(np.ceil((high - low) / _CELL).astype(int), 1)
    bounds = [(start, start + number * _CELL) for start, number in zip(low, count, strict=True)]
    sums, number = (
        np.histogram2d(places[:, 0], places[:, 1], bins=count, range=bounds, weights=weights)[0]
        for weights in (distances, None)
    )
    means = np.divide(sums, number, out=np.full(sums.shape, np.nan), where=number > 0)
    return means, (*bounds[0], *bounds[1])
