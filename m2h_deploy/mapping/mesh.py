"""Triangle meshes with a class for each vertex."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m2h_deploy.causes import reason
from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import library_path
from m2h_deploy.files.ply import write_ply
from m2h_deploy.mapping.open3d import import_open3d

Points = npt.NDArray[np.float64]


class Samples(NamedTuple):
    """Points on a surface."""

    points: Points
    """float64 (S, 3), meters."""
    normals: Points
    """float64 (S, 3), unit vectors."""
    labels: npt.NDArray[np.uint8] | None
    """uint8 (S,), label of the nearest corner of each point's triangle."""


@dataclass(frozen=True, eq=False)
class SemanticMesh:
    """Triangle mesh in the world's frame, meters. Triangles are counterclockwise seen from free space."""

    vertices: Points
    """float64 (N, 3)."""
    triangles: npt.NDArray[np.int64]
    """int64 (M, 3), indices of vertices."""
    labels: npt.NDArray[np.uint8] | None = None
    """uint8 (N,), class index of each vertex, 255 unlabeled. None: no labels."""

    @staticmethod
    def empty() -> SemanticMesh:
        """Make a mesh without triangles."""
        return SemanticMesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros(0, np.uint8))

    def with_labels(self, labels: npt.NDArray[np.uint8]) -> SemanticMesh:
        """Return the mesh with other labels."""
        return replace(self, labels=labels)

    def at(self, vertices: Points) -> SemanticMesh:
        """Return the mesh with its vertices elsewhere."""
        return replace(self, vertices=vertices)

    def canonical(self) -> SemanticMesh:
        """Merge vertices at the same place, drop what has no area and the labels, and sort vertices and triangles."""
        vertices, which = unique_rows(self.vertices)
        triangles = which[self.triangles]
        first = triangles.argmin(axis=1)[:, None]
        triangles = np.take_along_axis(triangles, (first + np.arange(3)) % 3, axis=1)
        a, b, c = triangles.T
        triangles = triangles[(a != b) & (b != c) & (c != a)]
        triangles = triangles[np.lexsort(triangles.T[::-1])]
        used = np.zeros(len(vertices), bool)
        used[triangles] = True
        return SemanticMesh(vertices[used], (np.cumsum(used) - 1)[triangles])

    def normals(self) -> Points:
        """Compute the normal of each triangle, float64 (M, 3), of twice the length of its area."""
        a, b, c = (self.vertices[self.triangles[:, corner]] for corner in range(3))
        return np.cross(b - a, c - a)

    def sample(self, spacing: float = 0.02, *, limit: int = 1_000_000) -> Samples:
        """Draw points on the surface, uniform by area; the same mesh gives the same points.

        Args:
            spacing: One point per square of this side, meters.
            limit: Largest number of points.
        """
        normals = self.normals()
        length = np.linalg.norm(normals, axis=1)
        total = np.cumsum(length) / 2
        area = float(total[-1]) if len(total) else 0.0
        count = min(limit, int(np.ceil(area / spacing**2)))
        generator = np.random.default_rng(0)
        # One point in each equal share of the area is more even than independent points.
        chosen = np.searchsorted(total, (np.arange(count) + generator.random(count)) * (area / max(count, 1)))
        chosen = np.minimum(chosen, len(total) - 1)
        root, along = np.sqrt(generator.random(count)), generator.random(count)
        shares = np.stack([1 - root, root * (1 - along), root * along], axis=1)
        corners = self.triangles[chosen]
        labels = None
        if self.labels is not None:
            labels = self.labels[np.take_along_axis(corners, shares.argmax(axis=1)[:, None], axis=1)[:, 0]]
        points = np.einsum("sc,sci->si", shares, self.vertices[corners])
        return Samples(points, normals[chosen] / length[chosen, None], labels)

    def write(self, path: str | os.PathLike[str], palette: npt.NDArray[np.uint8]) -> None:
        """Write the mesh as PLY, with the colors of the classes (RGB, uint8 (C, 3)) and the property `label`.

        Unlabeled vertices are gray. Raises M2HError if the file cannot be written.
        """
        labels = self.labels if self.labels is not None else np.full(len(self.vertices), IGNORE_LABEL, np.uint8)
        write_ply(Path(path), self.vertices, self.triangles, label_colors(labels, palette), labels)


def unique_rows(rows: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray[np.int64]]:
    """Sort and merge equal rows, (N, 3); much faster than NumPy's `unique` along an axis.

    Returns:
        The different rows, (U, 3), and which of them each row is, int64 (N,).
    """
    if len(rows) and np.issubdtype(rows.dtype, np.integer):
        low = rows.min(axis=0).astype(np.int64)
        extent = tuple(int(count) for count in rows.max(axis=0) - low + 1)
        if np.prod(extent, dtype=np.float64) < 2**62:  # one number for each row: faster again
            keys, which = np.unique(np.ravel_multi_index(tuple((rows - low).T), extent), return_inverse=True)
            return (np.stack(np.unravel_index(keys, extent), axis=1) + low).astype(rows.dtype), which
    order = np.lexsort(rows.T[::-1])
    ordered = rows[order]
    first = np.ones(len(rows), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    which = np.empty(len(rows), np.int64)
    which[order] = np.cumsum(first) - 1
    return ordered[first], which


def label_colors(labels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the color of each label, uint8 (N, 3), RGB; gray for a label that the palette lacks."""
    colors = np.full((256, 3), 128, np.uint8)
    colors[: min(len(palette), IGNORE_LABEL)] = palette[:IGNORE_LABEL]
    return colors[labels]


def read_mesh(path: str | os.PathLike[str]) -> SemanticMesh:
    """Read a triangle mesh that Open3D reads, and the vertex property `label` (uchar) of a PLY file.

    Raises:
        M2HError: The file cannot be read, has no triangles, or is damaged.
    """
    open3d = import_open3d()
    refused = M2HError(f"{path}: not a triangle mesh that Open3D reads: give a PLY file with faces")
    ply = Path(path).suffix.lower() == ".ply"
    if ply and not _is_ply(Path(path)):
        raise refused
    cloud = None
    with library_path(path) as name, open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error):
        try:
            found = open3d.t.io.read_triangle_mesh(name)
            if ply:
                cloud = open3d.t.io.read_point_cloud(name)
        except RuntimeError:
            raise refused from None
    if "positions" not in found.vertex or "indices" not in found.triangle:
        raise refused
    vertices, triangles = found.vertex.positions.numpy().astype(np.float64), found.triangle.indices.numpy()
    triangles = triangles.astype(np.int64)
    if not np.isfinite(vertices).all() or not ((triangles >= 0) & (triangles < len(vertices))).all():
        raise M2HError(f"{path}: a vertex is NaN or infinite, or a face has a vertex that does not exist")
    labels = None
    # Other programs write labels of other types and meanings, such as ScanNet's.
    if cloud is not None and "label" in cloud.point and cloud.point.label.dtype == open3d.core.uint8:
        labels = cloud.point.label.numpy().reshape(-1)
    mesh = SemanticMesh(vertices, triangles, labels)
    if not mesh.normals().any():
        raise M2HError(f"{path}: no face has an area")
    return mesh


def _is_ply(path: Path) -> bool:
    """Return whether a file begins like PLY: Open3D's reader itself prints what is wrong with others."""
    try:
        with path.open("rb") as file:
            return file.read(3) == b"ply"
    except OSError as error:
        raise M2HError(f"cannot read {path}: {reason(error)}") from None
