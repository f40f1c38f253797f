"""Fuse depth and labels of posed views into a truncated signed distance function (TSDF) with class votes.

The weights are the defaults of Hydra (MIT-SPARK, `ProjectiveIntegrator`), in which Mono-Hydra uses the predictions:

- A measurement has the weight 1/z^4: the density of viewing rays at the depth z, times a sensor's precision; both fall
  with z squared. Near views therefore outvote distant ones.
- Behind the surface the weight falls linearly, from one voxel on, to zero at the truncation distance. Both sides of a
  thin object are then seen, because each side hardly changes the voxels of the other.
- The weight has no upper limit: the order of the frames does not matter.

Two choices differ from Hydra's:

- The signed distance is measured to the plane of the nearest pixel (`DepthPlanes`), not along the ray: the latter
  overestimates the distance of slanted surfaces.
- Each measurement within the truncation distance is one vote for a class, so that the counts are exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import SemanticMesh, unique_rows
from m2h_deploy.mapping.open3d import import_open3d
from m2h_deploy.mapping.planes import DepthPlanes

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]

#: Voxels along each side of a block; memory is allocated by block.
_SIDE = 8

#: Distance between sampled pixels that is sure to hit each block of a surface, in blocks.
_SPACING = 0.25


class Volume:
    """TSDF with class votes. Memory depends on the size of the mapped surface, not on the number of frames."""

    def __init__(
        self,
        classes: int,
        *,
        voxel: float = 0.05,
        truncation: float = 0.15,
        depth_range: tuple[float, float] = (0.1, 5.0),
    ) -> None:
        """Make an empty volume.

        Args:
            classes: Number of semantic classes.
            voxel: Size of a voxel, meters.
            truncation: Largest signed distance to the surface that is stored, meters; at least the size of a voxel.
            depth_range: Depth that is used, meters: smallest and largest.
        """
        if not (voxel > 0 and truncation >= voxel and 0 < depth_range[0] < depth_range[1]):
            raise M2HError(
                f"voxel {voxel:g} m, truncation {truncation:g} m, depth {depth_range[0]:g} to {depth_range[1]:g} m: "
                "the truncation must be at least the voxel, and depth must be above 0 and increase"
            )
        self.classes, self.voxel, self.truncation, self.depth_range = classes, voxel, truncation, depth_range
        self._rows: dict[tuple[int, int, int], int] = {}
        self._blocks = np.zeros((0, 3), np.int32)
        cells = _SIDE**3
        self._tsdf = np.zeros((0, cells), np.float32)
        self._weight = np.zeros((0, cells), np.float32)
        self._views = np.zeros((0, cells), np.uint16)
        self._votes = np.zeros((0, cells, classes), np.uint16)
        grid = np.stack(np.meshgrid(*[np.arange(_SIDE)] * 3, indexing="ij"), axis=-1)
        self._offsets = (grid.reshape(-1, 3) * voxel).astype(np.float64)

    @property
    def blocks(self) -> int:
        """Number of allocated blocks."""
        return len(self._rows)

    def integrate(self, depth: Floats, labels: Labels | None, intrinsics: Intrinsics, pose: Pose) -> None:
        """Add a view.

        Args:
            depth: float32 (H, W), meters along the optical axis, 0 where unknown.
            labels: uint8 (H, W), class index; other values, such as 255, do not vote. None: no votes.
            intrinsics: Camera of the images.
            pose: Camera to world, float64 (4, 4).
        """
        depth = np.where(np.isfinite(depth) & (depth >= self.depth_range[0]), depth, 0).astype(np.float32)
        self._allocate(depth, intrinsics, pose)
        rows, points = self._in_view(intrinsics, pose, depth.shape)
        if len(rows) == 0:
            return
        near, far = self.depth_range
        voxels, pixels, z, distance = DepthPlanes(depth, intrinsics).look_up(points, (near, far + self.truncation))
        # Depth beyond the range only tells what is free.
        keep = (distance > -self.truncation) & ((distance >= self.truncation) | (depth.ravel()[pixels] <= far))
        voxels, pixels, z, distance = voxels[keep], pixels[keep], z[keep], distance[keep]
        voxels = rows[voxels // _SIDE**3] * _SIDE**3 + voxels % _SIDE**3
        self._average(voxels, distance, z)
        if labels is not None:
            surface = distance < self.truncation
            self._vote(voxels[surface], labels.ravel()[pixels[surface]])

    def _average(self, voxels: npt.NDArray[np.int64], distance: Floats, z: Floats) -> None:
        tsdf, weight, views = self._tsdf.reshape(-1), self._weight.reshape(-1), self._views.reshape(-1)
        added = z**-4
        if self.truncation > self.voxel:
            added *= np.clip((self.truncation + distance) / (self.truncation - self.voxel), 1e-4, 1)
        before = weight[voxels]
        after = before + added
        value = np.minimum(distance / self.truncation, 1)
        old = tsdf[voxels]
        tsdf[voxels] = old + (value - old) * (added / after)
        weight[voxels] = after
        counts = views[voxels]
        views[voxels] = counts + (counts < np.iinfo(np.uint16).max)

    def _vote(self, voxels: npt.NDArray[np.int64], labels: Labels) -> None:
        chosen = labels < self.classes
        places = voxels[chosen] * self.classes + labels[chosen]
        votes = self._votes.reshape(-1)
        counts = votes[places]
        votes[places] = counts + (counts < np.iinfo(np.uint16).max)

    def _allocate(self, depth: Floats, intrinsics: Intrinsics, pose: Pose) -> None:
        """Allocate the blocks within the truncation distance of the surface that the view shows."""
        size = _SIDE * self.voxel
        step = max(1, int(_SPACING * size * min(intrinsics.fx, intrinsics.fy) / self.depth_range[1]))
        sampled = depth[::step, ::step]
        rays = intrinsics.rays(*depth.shape)[::step, ::step]
        seen = (sampled > 0) & (sampled <= self.depth_range[1])
        rays, z = rays[seen], sampled[seen].astype(np.float64)[:, None]
        reach = self.truncation / np.linalg.norm(rays, axis=1, keepdims=True)
        count = 1 + 2 * int(np.ceil(self.truncation / (size / 2)))
        points = np.concatenate([rays * (z + reach * share) for share in np.linspace(-1, 1, count)])
        if len(points) == 0:
            return
        blocks = np.floor((points @ pose[:3, :3].T + pose[:3, 3]) / size).astype(np.int64)
        keys = [tuple(key) for key in unique_rows(blocks)[0].tolist()]
        fresh = [key for key in keys if key not in self._rows]
        if not fresh:
            return
        first = len(self._rows)
        self._rows.update((key, first + number) for number, key in enumerate(fresh))
        self._grow(len(self._rows))
        self._blocks[first : len(self._rows)] = fresh

    def _grow(self, rows: int) -> None:
        """Make room for `rows` blocks; capacity doubles, so that growing is rare."""
        capacity = len(self._blocks)
        if rows <= capacity:
            return
        for name in ("_blocks", "_tsdf", "_weight", "_views", "_votes"):
            old = getattr(self, name)
            # The operating system provides memory for zeros only once they are written.
            new = np.zeros((max(rows, 2 * capacity), *old.shape[1:]), old.dtype)
            new[:capacity] = old
            setattr(self, name, new)

    def _in_view(
        self, intrinsics: Intrinsics, pose: Pose, shape: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the allocated blocks that the view can change, and their voxels in camera axes (3, voxels)."""
        rotation, position = pose[:3, :3], pose[:3, 3]
        blocks = self._blocks[: self.blocks] * (_SIDE * self.voxel)
        center = (blocks + (_SIDE - 1) / 2 * self.voxel - position) @ rotation
        radius = np.sqrt(3) * _SIDE / 2 * self.voxel
        # A sphere is outside the image if it is beyond one of the planes through the camera and an image border.
        inside = (center[:, 2] > self.depth_range[0] - radius) & (
            center[:, 2] < self.depth_range[1] + self.truncation + radius
        )
        for axis, focal, middle, count in (
            (0, intrinsics.fx, intrinsics.cx, shape[1]),
            (1, intrinsics.fy, intrinsics.cy, shape[0]),
        ):
            for edge, sign in ((-0.5, 1.0), (count - 0.5, -1.0)):
                slope = (edge - middle) / focal
                inside &= sign * (center[:, axis] - slope * center[:, 2]) > -radius * np.hypot(1, slope)
        rows = np.flatnonzero(inside)
        corners = ((blocks[rows] - position) @ rotation).astype(np.float32)
        offsets = (self._offsets @ rotation).astype(np.float32)
        return rows, np.stack([(corners[:, i, None] + offsets[None, :, i]).ravel() for i in range(3)])

    def mesh(self, views: int = 2) -> SemanticMesh:
        """Extract the surface by marching cubes where each voxel was seen in at least `views` views.

        A sign change between two voxels whose distances differ by more than the truncation distance is not a surface,
        but the border between free space and the unseen space behind an object. The order of vertices and triangles
        does not depend on the number of threads. A vertex has the label with most votes at its nearest voxel (of equals
        the lowest), or 255 without votes.
        """
        open3d = import_open3d()
        if self.blocks == 0:
            return SemanticMesh.empty()
        core = open3d.core
        # Open3D computes in float32: coordinates relative to the map keep their precision far from the origin.
        origin = self._blocks[: self.blocks].min(axis=0)
        blocks = np.ascontiguousarray(self._blocks[: self.blocks] - origin)
        grid = open3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight"), (core.float32, core.float32), ((1,), (1,)), self.voxel, _SIDE, self.blocks
        )
        rows, _ = grid.hashmap().activate(core.Tensor(blocks))
        # Open3D's index within a block runs over x first.
        for name, values in (("tsdf", self._tsdf), ("weight", self._views)):
            target = grid.attribute(name).numpy()[..., 0]
            target[rows.numpy()] = values[: self.blocks].reshape(-1, _SIDE, _SIDE, _SIDE).transpose(0, 3, 2, 1)
        try:
            found = grid.extract_triangle_mesh(views - 0.5, -1)
        except RuntimeError as error:
            if "has shape {0}" in str(error):  # Open3D cannot make a mesh without vertices
                return SemanticMesh.empty()
            raise
        vertices, triangles = found.vertex.positions.numpy(), found.triangle.indices.numpy()
        first = origin.astype(np.int64) * _SIDE
        triangles = triangles[self._steady(vertices, first)[triangles].all(axis=1)]
        mesh = SemanticMesh(vertices.astype(np.float64), triangles).canonical()
        mesh = mesh.with_labels(self._labels(mesh.vertices, first))
        return mesh.at(mesh.vertices + first * self.voxel)

    def _steady(self, vertices: Floats, first: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return whether the distance is continuous along the edge between two voxels that each vertex is on.

        Vertices are relative to the voxel `first`, (3,).
        """
        places = vertices / np.float32(self.voxel)
        slack = np.float32(1e-3)  # of a coordinate that is a voxel's
        low, high = (
            self._tsdf.reshape(-1)[self._cells(first + end.astype(np.int64))]
            for end in (np.floor(places + slack), np.ceil(places - slack))
        )
        steady: npt.NDArray[np.bool_] = np.abs(high - low) <= 1
        return steady

    def _cells(self, voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the index of allocated voxels, (N, 3), into flattened arrays."""
        blocks = voxels // _SIDE
        keys, which = unique_rows(blocks)
        rows = np.array([self._rows[key] for key in map(tuple, keys.tolist())], np.int64)
        x, y, z = (voxels - blocks * _SIDE).T
        return rows[which] * _SIDE**3 + (x * _SIDE + y) * _SIDE + z

    def _labels(self, points: npt.NDArray[np.float64], first: npt.NDArray[np.int64]) -> Labels:
        """Return the label with most votes at the voxel nearest to each point; points are relative to `first`."""
        if len(points) == 0:
            return np.zeros(0, np.uint8)
        nearest = self._cells(first + np.rint(points / self.voxel).astype(np.int64))
        votes = self._votes.reshape(-1, self.classes)[nearest]
        return np.where(votes.any(axis=1), votes.argmax(axis=1), IGNORE_LABEL).astype(np.uint8)
