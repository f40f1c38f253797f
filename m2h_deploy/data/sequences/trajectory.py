"""Trajectories: timed poses of a camera, from a TUM file or from matrices, and the pose at the time of an image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences.lines import counted, data_lines
from m2h_deploy.errors import M2HError

Floats = npt.NDArray[np.float64]

#: Largest step in time, in seconds, over which a pose is interpolated.
LARGEST_GAP = 0.1
#: Largest deviation of a quaternion's length, and of the elements of R^T R, that is taken for rounding.
ROUNDING = 0.01
#: Time stamps that differ by less, in seconds, are equal: lists have 6 decimals.
SAME_TIME = 5e-7

#: A camera that moves faster, in m/s, or turns faster, in degrees/s, jumps.
FASTEST, FASTEST_TURN = 10.0, 720.0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Poses in order of time."""

    path: Path
    times: Floats
    """(N,), seconds, strictly increasing."""
    positions: Floats
    """(N, 3), meters."""
    quaternions: Floats
    """(N, 4), unit length, x y z w."""
    valid: npt.NDArray[np.bool_]
    """(N,), False where the file has no usable pose."""
    skipped: tuple[str, ...] = ()
    """A line for each kind of row that is not used."""

    def at(self, times: Floats, tolerance: float) -> list[Pose | None]:
        """Return the poses at `times`.

        A pose is interpolated (linearly, and on the great arc) if its two neighbors are at most `LARGEST_GAP` apart;
        else it is the nearest within `tolerance` seconds; else None. It is also None where the nearest row is unusable.

        Args:
            times: (M,), seconds.
            tolerance: Seconds.
        """
        last = len(self.times) - 1
        after = np.clip(np.searchsorted(self.times, times), 0, last)
        before = np.clip(after - 1, 0, last)
        nearest = np.where(np.abs(self.times[before] - times) < np.abs(self.times[after] - times), before, after)
        gap = self.times[after] - self.times[before]
        between = (self.times[before] <= times) & (times <= self.times[after]) & (gap <= LARGEST_GAP + SAME_TIME)
        between &= (gap > 0) & self.valid[before] & self.valid[after]
        distance = np.abs(self.times[nearest] - times)
        # A row at the time of the image decides alone, whether it is usable or not.
        between &= distance > SAME_TIME
        share = np.divide(times - self.times[before], gap, out=np.zeros_like(times), where=between)[:, None]
        positions = (1 - share) * self.positions[before] + share * self.positions[after]
        rotations = slerp(self.quaternions[before], self.quaternions[after], share)
        found = between | (self.valid[nearest] & (distance <= max(tolerance, SAME_TIME)))
        positions[~between], rotations[~between] = (
            self.positions[nearest[~between]],
            self.quaternions[nearest[~between]],
        )
        matrices = pose_matrices(positions, rotations)
        return [matrix if known else None for matrix, known in zip(matrices, found, strict=True)]


def read_trajectory(path: Path) -> Trajectory:
    """Read a trajectory in TUM's format: lines of `timestamp tx ty tz qx qy qz qw`, camera to world.

    Rows are sorted by time; of rows of the same time, the first is used. Rows with NaN, infinity or a quaternion whose
    length is not 1 have no usable pose.

    Raises:
        M2HError: The file cannot be read, has a line that is not 8 numbers, or has no usable pose.
    """
    rows = []
    for number, line in data_lines(path, "trajectory"):
        try:
            values = [float(word) for word in line.replace(",", " ").split()]
        except ValueError:
            values = []
        if len(values) != 8:
            raise M2HError(f"{path}, line {number}: expected 8 numbers, 'timestamp tx ty tz qx qy qz qw'")
        rows.append(values)
    table = np.array(rows, np.float64).reshape(-1, 8)
    table = table[np.isfinite(table[:, 0])]
    table = table[np.argsort(table[:, 0], kind="stable")]
    repeated = np.diff(table[:, 0], prepend=-np.inf) < SAME_TIME
    repeats, table = table[repeated], table[~repeated]
    with np.errstate(invalid="ignore", over="ignore"):
        length = np.linalg.norm(table[:, 4:], axis=1)
        valid = np.isfinite(table).all(axis=1) & (np.abs(length - 1) <= ROUNDING)
    if not valid.any():
        raise M2HError(f"{path}: no usable pose among {len(rows)} lines of 'timestamp tx ty tz qx qy qz qw'")
    table[~valid, 1:] = 0, 0, 0, 0, 0, 0, 1
    quaternions = table[:, 4:] / np.where(valid, length, 1)[:, None]
    skipped = counted(
        f"{path}: rows with NaN, infinity or a quaternion whose length is not 1 are not used", _at(table[~valid, 0])
    ) + counted(f"{path}: rows that repeat a time stamp are not used", _at(repeats[:, 0]))
    return Trajectory(path, table[:, 0], table[:, 1:4], quaternions, valid, skipped)


def _at(times: Floats) -> list[str]:
    return [f"at {time:.6f}" for time in times]


def slerp(first: Floats, second: Floats, share: Floats) -> Floats:
    """Interpolate unit quaternions on the shorter great arc.

    Args:
        first: (N, 4), unit length.
        second: (N, 4), unit length.
        share: (N, 1), 0 is `first`, 1 is `second`.

    Returns:
        (N, 4), unit length.
    """
    cosine = np.sum(first * second, axis=-1, keepdims=True)
    second = np.where(cosine < 0, -second, second)
    # From chord and sum, because the arc cosine loses half of the digits at small angles.
    angle = 2 * np.arctan2(
        np.linalg.norm(second - first, axis=-1, keepdims=True), np.linalg.norm(second + first, axis=-1, keepdims=True)
    )
    small = angle < 1e-9
    sine = np.where(small, 1.0, np.sin(angle))
    result = np.where(small, 1 - share, np.sin((1 - share) * angle) / sine) * first
    result = result + np.where(small, share, np.sin(share * angle) / sine) * second
    return np.asarray(result / np.linalg.norm(result, axis=-1, keepdims=True))


def pose_matrices(positions: Floats, quaternions: Floats) -> Floats:
    """Convert positions (N, 3) and unit quaternions (N, 4), x y z w, to rigid transforms (N, 4, 4)."""
    x, y, z, w = np.moveaxis(quaternions, -1, 0)
    poses = np.zeros((len(positions), 4, 4))
    poses[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1)
    poses[:, 1, :3] = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1)
    poses[:, 2, :3] = np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1)
    poses[:, :3, 3] = positions
    poses[:, 3, 3] = 1
    return poses


def rigid(matrix: Floats) -> Pose | None:
    """Return a matrix as a rigid transform, with rounding removed from its rotation; None if it is far from one."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or np.abs(matrix[:3, :3]).max() > 2:
        return None
    rotation = matrix[:3, :3]
    off = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if off > 2 * ROUNDING or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - (0, 0, 0, 1)).max() > 1e-6:
        return None
    left, _, right = np.linalg.svd(rotation)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = left @ right, matrix[:3, 3]
    return pose


def jumps(sequence: Sequence) -> list[int]:
    """Return the frames at which the camera jumps: it moved or turned there faster than a camera can.

    Each posed frame is compared with the posed frame before it: above `FASTEST` m/s or `FASTEST_TURN` degrees/s, the
    pose is wrong or belongs to another part of the trajectory.
    """
    posed = [(index, m.timestamp, m.pose) for index, m in enumerate(sequence.moments) if m.pose is not None]
    if len(posed) < 2:
        return []
    times, poses = np.array([time for _, time, _ in posed]), np.array([pose for _, _, pose in posed])
    step = np.diff(times)
    with np.errstate(over="ignore"):
        distance = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    trace = np.einsum("nij,nij->n", poses[:-1, :3, :3], poses[1:, :3, :3])
    turn = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    fast = (distance > FASTEST * step) | (turn > FASTEST_TURN * step)
    return [posed[int(place) + 1][0] for place in np.flatnonzero(fast)]


def check_overlap(trajectory: Trajectory, times: Iterable[float], folder: Path, tolerance: float) -> None:
    """Raise M2HError if the times of a trajectory and of the images have no time in common."""
    first, last = min(times), max(times)
    begin, end = float(trajectory.times[0]), float(trajectory.times[-1])
    if begin > last + tolerance or end < first - tolerance:
        raise M2HError(
            f"{trajectory.path}: its poses are from {begin:.3f} to {end:.3f} s, but the images of {folder} from "
            f"{first:.3f} to {last:.3f} s: give the trajectory of this sequence, in seconds "
            "of the same clock, or what to add to the times of the images (--offset)"
        )
