"""Fuse depth and labels of posed views into a truncated signed distance function (TSDF) with class votes.

The weights are the defaults of Hydra (MIT-SPARK, `ProjectiveIntegrator`), in which Mono-Hydra uses the predictions:

- A measurement has the weight 1/z^4: the density of viewing rays at the depth z, times a sensor's precision; both fall
  with z squared. Near views therefore outvote distant ones.
- Behind the surface the weight falls linearly, from one voxel on, to zero at the truncation distance. Both sides of a
  thin object are then seen, because each side hardly changes the voxels of the other.
- The weight has no upper limit: the order of the frames does not matter.

Two choices differ from Hydra's:

- The signed distance is measured to the plane of the nearest pixel, not along the ray: the latter overestimates the
  distance of slanted surfaces. The plane's slope is the smaller one of both sides, so that it never crosses the
  edge of an object.
- Each measurement within the truncation distance is one vote for a class, so that the counts are exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.classes import IGNORE_LABEL
from m2h_deploy.data.frame import Intrinsics, Pose
from m2h_deploy.errors import M2HError
from m2h_deploy.mapping.mesh import SemanticMesh
from m2h_deploy.mapping.open3d import import_open3d

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
            labels: uint8 (H, W), class index; other values, such as 255, are no vote. None: no votes.
            intrinsics: Camera of the images.
            pose: Camera to world, float64 (4, 4).
        """
        depth = np.where(np.isfinite(depth) & (depth >= self.depth_range[0]), depth, 0).astype(np.float32)
        self._allocate(depth, intrinsics, pose)
        rows, points = self._in_view(intrinsics, pose, depth.shape)
        if len(rows) == 0:
            return
        view = _View(depth, intrinsics)
        voxels, pixels, z, inverse, slope = view.look_up(points, self.depth_range)
        distance = (1 - z * inverse) * slope
        keep = distance > -self.truncation
        voxels, pixels, z, distance = voxels[keep], pixels[keep], z[keep], distance[keep]
        voxels = rows[voxels // _SIDE**3] * _SIDE**3 + voxels % _SIDE**3
        self._average(voxels, distance, z)
        if labels is not None:
            self._vote(voxels[distance < self.truncation], labels.ravel()[pixels[distance < self.truncation]])

    def _average(self, voxels: npt.NDArray[np.int64], distance: Floats, z: Floats) -> None:
        tsdf, weight, views = self._tsdf.reshape(-1), self._weight.reshape(-1), self._views.reshape(-1)
        added = z**-4
        if self.truncation > self.voxel:
            added *= np.clip((self.truncation + distance) / (self.truncation - self.voxel), 0, 1)
        before = weight[voxels]
        after = before + added
        value = np.minimum(distance / self.truncation, 1)
        old = tsdf[voxels]
        tsdf[voxels] = old + (value - old) * (added / np.maximum(after, np.float32(1e-30)))
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
        low = blocks.min(axis=0)
        touched = np.zeros(blocks.max(axis=0) - low + 1, bool)
        touched[tuple((blocks - low).T)] = True
        keys = [tuple(key) for key in (np.argwhere(touched) + low).tolist()]
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
        extra = max(rows, 2 * capacity) - capacity
        for name in ("_blocks", "_tsdf", "_weight", "_views", "_votes"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros((extra, *old.shape[1:]), old.dtype)]))

    def _in_view(
        self, intrinsics: Intrinsics, pose: Pose, shape: tuple[int, ...]
    ) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the allocated blocks that the view can change, and their voxels in camera axes (3, voxels)."""
        rotation, position = pose[:3, :3], pose[:3, 3]
        blocks = self._blocks[: self.blocks] * (_SIDE * self.voxel)
        center = (blocks + (_SIDE - 1) / 2 * self.voxel - position) @ rotation
        radius = np.sqrt(3) * _SIDE / 2 * self.voxel
        # A sphere is outside the image if it is beyond one of the planes through the camera and an image border.
        inside = (center[:, 2] > self.depth_range[0] - radius) & (center[:, 2] < self.depth_range[1] + radius)
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

    def mesh(self, views: int = 3) -> SemanticMesh:
        """Extract the surface by marching cubes where each voxel was seen in at least `views` views.

        The order of vertices and triangles does not depend on the number of threads. A vertex has the label with most
        votes at its nearest voxel (of equals the lowest), or 255 without votes.
        """
        open3d = import_open3d()
        if self.blocks == 0:
            return SemanticMesh.empty()
        core = open3d.core
        grid = open3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight"), (core.float32, core.float32), ((1,), (1,)), self.voxel, _SIDE, self.blocks
        )
        rows, _ = grid.hashmap().activate(core.Tensor(np.ascontiguousarray(self._blocks[: self.blocks])))
        # Open3D's index within a block runs over x first.
        for name, values in (("tsdf", self._tsdf), ("weight", self._views)):
            target = grid.attribute(name).numpy()[..., 0]
            target[rows.numpy()] = (
                values[: self.blocks].reshape(-1, _SIDE, _SIDE, _SIDE).transpose(0, 3, 2, 1).astype(np.float32)
            )
        found = grid.extract_triangle_mesh(float(views), -1)
        if "positions" not in found.vertex or "indices" not in found.triangle:
            return SemanticMesh.empty()
        mesh = SemanticMesh(
            found.vertex.positions.numpy().astype(np.float64), found.triangle.indices.numpy().astype(np.int64)
        ).canonical()
        return mesh.with_labels(self._labels(mesh.vertices))

    def _labels(self, points: npt.NDArray[np.float64]) -> Labels:
        """Return the label with most votes at the voxel nearest to each point."""
        voxels = np.rint(points / self.voxel).astype(np.int64)
        blocks = voxels // _SIDE
        rows = np.array([self._rows[key] for key in map(tuple, blocks.tolist())], np.int64)
        x, y, z = (voxels - blocks * _SIDE).T
        votes = self._votes[rows, (x * _SIDE + y) * _SIDE + z]
        return np.where(votes.any(axis=1), votes.argmax(axis=1), IGNORE_LABEL).astype(np.uint8)


class _View:
    """Depth image as planes: the inverse depth of a plane is linear in the pixel's coordinates."""

    def __init__(self, depth: Floats, intrinsics: Intrinsics) -> None:
        self.intrinsics, self.shape = intrinsics, depth.shape
        with np.errstate(divide="ignore"):
            inverse = np.where(depth > 0, 1 / depth, 0).astype(np.float32)
        self.inverse = inverse.ravel()
        self.across, self.down = _slope(inverse.T).T.ravel(), _slope(inverse).ravel()

    def look_up(
        self, points: Floats, depth_range: tuple[float, float]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats, Floats, Floats]:
        """Look up the surface on each point's ray.

        Args:
            points: float32 (3, N), camera axes, meters.
            depth_range: Points of another depth are left out.

        Returns:
            For each point at a pixel with known depth: its index, its pixel, its depth, the surface's inverse depth on
            its ray, and the factor from 1 - depth * inverse depth to the distance from the surface's plane.
        """
        k = self.intrinsics
        height, width = self.shape
        x, y, z = points
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = x / z * np.float32(k.fx) + np.float32(k.cx), y / z * np.float32(k.fy) + np.float32(k.cy)
        valid = (z >= depth_range[0]) & (z <= depth_range[1])
        valid &= (u > -0.5) & (u < width - 0.5) & (v > -0.5) & (v < height - 0.5)
        index = np.flatnonzero(valid)
        u, v, z = u[index], v[index], z[index]
        column, row = np.rint(u), np.rint(v)
        pixels = row.astype(np.int64) * width + column.astype(np.int64)
        known = self.inverse[pixels] > 0
        index, pixels, z = index[known], pixels[known], z[known]
        u, v, column, row = u[known], v[known], column[known], row[known]
        across, down = self.across[pixels], self.down[pixels]
        inverse = self.inverse[pixels] + across * (u - column) + down * (v - row)
        a, b = across * np.float32(k.fx), down * np.float32(k.fy)
        c = inverse - a * ((u - np.float32(k.cx)) / np.float32(k.fx)) - b * ((v - np.float32(k.cy)) / np.float32(k.fy))
        return index, pixels, z, inverse, 1 / np.sqrt(a * a + b * b + c * c)


def _slope(inverse: Floats) -> Floats:
    """Return the slope of inverse depth along the first axis: the smaller of both sides, 0 where their signs differ."""
    step = np.diff(inverse, axis=0)
    step[(inverse[1:] == 0) | (inverse[:-1] == 0)] = 0
    slope = np.zeros_like(inverse)
    before, after = step[:-1], step[1:]
    slope[1:-1] = np.where(before * after > 0, np.where(np.abs(before) < np.abs(after), before, after), 0)
    return slope
