"""The true surface: a mesh, and evenly spaced samples of it that know whether they were seen."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import Points, SemanticMesh, read_mesh
from m2h_deploy.mapping.open3d import import_open3d
from m2h_deploy.mapping.planes import DepthPlanes

#: Views that a sample must be visible in to count as observed: as many as `Volume.mesh` needs of a voxel.
VIEWS = 3


class Nearest(NamedTuple):
    """Nearest neighbor of each of N points."""

    distances: npt.NDArray[np.float64]
    """(N,), meters."""
    chosen: npt.NDArray[np.int64]
    """(N,), which of the points searched."""


class MeshDistance:
    """Exact distances from points to the triangles of a mesh."""

    def __init__(self, mesh: SemanticMesh) -> None:
        open3d = import_open3d()
        self._tensor = open3d.core.Tensor
        self._scene: Any = None
        if len(mesh.triangles):
            # Open3D computes in float32: coordinates relative to the mesh keep their precision.
            self._center = mesh.vertices.mean(axis=0)
            self._scene = open3d.t.geometry.RaycastingScene()
            vertices = (mesh.vertices - self._center).astype(np.float32)
            self._scene.add_triangles(self._tensor(vertices), self._tensor(mesh.triangles.astype(np.uint32)))

    def __call__(self, points: Points) -> npt.NDArray[np.float64]:
        """Compute the unsigned distance of each point, float64 (N,), meters; NaN from an empty mesh."""
        if self._scene is None or len(points) == 0:
            return np.full(len(points), np.nan)
        distances = self._scene.compute_distance(self._tensor((points - self._center).astype(np.float32)))
        return distances.numpy().astype(np.float64)


class TrueSurface:
    """The surface that maps are compared with.

    A sample counts as observed where a map could have it: visible within the range of depth in at least `VIEWS` views.
    """

    def __init__(self, mesh: SemanticMesh, spacing: float = 0.02) -> None:
        """Sample a mesh.

        Args:
            mesh: The true surface, or a mesh fused from true depth.
            spacing: Distance between samples, meters.
        """
        if len(mesh.triangles) == 0:
            raise M2HError("the true surface has no triangles")
        samples = mesh.sample(spacing)
        self.mesh, self.points, self.normals, self.labels = mesh, samples.points, samples.normals, samples.labels
        self.views = np.zeros(len(self.points), np.uint16)
        self.distances = MeshDistance(mesh)
        # In float32, coordinates relative to the surface keep their precision far from the origin.
        self._center = self.points.mean(axis=0)
        self._points32 = (self.points - self._center).astype(np.float32)

    @classmethod
    def read(cls, path: str | os.PathLike[str], spacing: float = 0.02) -> TrueSurface:
        """Read and sample a PLY file or another mesh that Open3D reads. Raises M2HError if it cannot be read."""
        return cls(read_mesh(path), spacing)

    @property
    def observed(self) -> npt.NDArray[np.bool_]:
        """Whether each sample was seen, bool (S,)."""
        return self.views >= VIEWS

    def observe(
        self,
        depth: npt.NDArray[np.float32],
        intrinsics: Intrinsics,
        pose: Pose,
        depth_range: tuple[float, float] = (0.1, 5.0),
        tolerance: float = 0.025,
    ) -> None:
        """Count the samples that a view shows.

        Args:
            depth: True depth, float32 (H, W), meters, 0 where unknown.
            intrinsics: Camera of the image.
            pose: Camera to world, float64 (4, 4).
            depth_range: Depth in which samples are counted, meters.
            tolerance: Largest distance from a sample to the plane of its pixel, meters.
        """
        rotation = pose[:3, :3].astype(np.float32)
        points = rotation.T @ (self._points32 - (pose[:3, 3] - self._center).astype(np.float32)).T
        seen = DepthPlanes(depth, intrinsics).look_up(points, depth_range)
        shown = seen.point[np.abs(seen.distance) <= tolerance]
        self.views[shown] += self.views[shown] < np.iinfo(np.uint16).max


class NearestSamples:
    """Nearest neighbors among points."""

    def __init__(self, points: Points) -> None:
        open3d = import_open3d()
        self._tensor = open3d.core.Tensor
        self._search = open3d.core.nns.NearestNeighborSearch(self._tensor(np.ascontiguousarray(points)))
        self._search.knn_index()

    def __call__(self, points: Points) -> Nearest:
        """Find the nearest of them for each of `points`, float64 (N, 3)."""
        index, squares = self._search.knn_search(self._tensor(np.ascontiguousarray(points)), 1)
        return Nearest(np.sqrt(squares.numpy()[:, 0]), index.numpy()[:, 0].astype(np.int64))
