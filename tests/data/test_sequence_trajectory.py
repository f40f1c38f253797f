"""Test trajectories: the file, interpolation, unusable poses, and jumps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2h_deploy.data.frame import Pose
from m2h_deploy.data.sequences import jumps, open_sequence
from m2h_deploy.data.sequences.trajectory import pose_matrices, read_trajectory, rigid
from m2h_deploy.errors import M2HError
from tests.data.sequence_folders import write_tum

UNIT = st.floats(-1, 1)


def turned(axis: np.ndarray, angle: float) -> np.ndarray:
    """Return the quaternion (x y z w) of a rotation about a unit vector."""
    return np.append(np.sin(angle / 2) * axis, np.cos(angle / 2))


def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    vector = one[3] * other[:3] + other[3] * one[:3] + np.cross(one[:3], other[:3])
    return np.append(vector, one[3] * other[3] - one[:3] @ other[:3])


@settings(max_examples=50, deadline=None)
@given(
    start=st.tuples(UNIT, UNIT, UNIT, UNIT).filter(lambda q: sum(x * x for x in q) > 0.01),
    axis=st.tuples(UNIT, UNIT, UNIT).filter(lambda v: sum(x * x for x in v) > 0.01),
    turn=st.floats(0, 35),
    velocity=st.tuples(UNIT, UNIT, UNIT),
    flips=st.integers(0, 255),
)
def test_interpolation_of_constant_velocity_is_exact(tmp_path_factory, start, axis, turn, velocity, flips) -> None:
    """Between rows 0.08 s apart, up to 160 degrees; a quaternion and its negative are the same rotation."""
    first, about = np.array(start) / np.linalg.norm(start), np.array(axis) / np.linalg.norm(axis)

    def pose(time: float) -> np.ndarray:
        return np.concatenate([np.array(velocity) * time, product(first, turned(about, turn * time))])

    rows = [
        (time, pose(time) * ([1] * 3 + [(-1) ** (flips >> i & 1)] * 4))
        for i, time in enumerate((np.arange(8) * 0.08).tolist())
    ]
    file = tmp_path_factory.mktemp("trajectory") / "poses.txt"
    file.write_text("".join(f"{time!r} {' '.join(map(repr, map(float, row)))}\n" for time, row in rows))
    times = np.linspace(0, 0.56, 30)
    found = read_trajectory(file).at(times, 0.0)
    exact = np.array([pose(time) for time in times])
    expected = pose_matrices(exact[:, :3], exact[:, 3:])
    assert np.allclose(np.array(found), expected, rtol=0, atol=1e-12)


def test_quaternions_are_x_y_z_w() -> None:
    quarter = turned(np.array([0.0, 0.0, 1.0]), np.pi / 2)
    pose = pose_matrices(np.array([[1.0, 2.0, 3.0]]), quarter[None])[0]
    assert np.allclose(pose, [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])


def poses_at(tmp_path: Path, text: str, times: list[float], tolerance: float = 0.02) -> list[float | None]:
    """Return the x of the poses at `times`; `text` has lines of `time x`."""
    file = tmp_path / "poses.txt"
    file.write_text("".join(f"{line.strip()} 0 0 0 0 0 1\n" for line in text.split(";")))
    return [
        None if pose is None else float(pose[0, 3]) for pose in read_trajectory(file).at(np.array(times), tolerance)
    ]


def test_a_pose_is_interpolated_in_a_small_gap_else_the_nearest(tmp_path: Path) -> None:
    assert poses_at(tmp_path, "0 0; 0.1 1", [0.0, 0.03, 0.1]) == pytest.approx([0, 0.3, 1])
    assert poses_at(tmp_path, "1000 0; 1000.1 1", [1000.05]) == pytest.approx([0.5])
    assert poses_at(tmp_path, "0 0; 0.2 1", [0.01, 0.05, 0.19]) == [0, None, 1]
    assert poses_at(tmp_path, "5 7", [4.97, 4.99, 5.0, 5.02, 5.03]) == [None, 7, 7, 7, None]


def test_without_tolerance_only_rows_of_the_same_time_or_on_both_sides_count(tmp_path: Path) -> None:
    assert poses_at(tmp_path, "1 0; 1.05 1; 2 3", [0.999, 1.0, 1.025, 1.5, 2.0], 0.0) == pytest.approx(
        [None, 0, 0.5, None, 3]
    )


def test_rows_are_sorted_and_repeated_times_are_counted(tmp_path: Path) -> None:
    assert poses_at(tmp_path, "0.2 2; 0 0; 0.1 1; 0.1 9", [0.0, 0.1, 0.2]) == [0, 1, 2]
    assert read_trajectory(tmp_path / "poses.txt").skipped == (
        f"{tmp_path}/poses.txt: rows that repeat a time stamp are not used: 1, the first at 0.100000",
    )


@pytest.mark.parametrize(
    "bad", ["nan 0 0 0 0 0 1", "0 inf 0 0 0 0 1", "0 0 0 0 0 0 0", "0 0 0 0 0 0 1.5", "0 0 0 0 nan 0 1"]
)
def test_unusable_poses_are_counted_and_their_images_have_none(tmp_path: Path, bad: str) -> None:
    root = write_tum(tmp_path)
    lines = (root / "groundtruth.txt").read_text().splitlines()
    lines[2] = f"1000.100000 {bad}"
    (root / "groundtruth.txt").write_text("\n".join(lines))
    sequence = open_sequence(root)
    assert [moment.pose is None for moment in sequence.moments] == [False, True, False, False]
    unused, without = sequence.skipped
    assert unused.endswith("length is not 1 are not used: 1, the first at 1000.100000")
    assert without == f"{root}/groundtruth.txt: images without a pose close in time: 1, the first 1000.100000"


def test_rounded_quaternions_are_normalized(tmp_path: Path) -> None:
    file = tmp_path / "poses.txt"
    file.write_text("0 0 0 0 0.707 0 0 0.707\n1 0 0 0 0 0 0 0.995\n")
    trajectory = read_trajectory(file)
    assert trajectory.skipped == ()
    for pose in trajectory.at(np.array([0.0, 1.0]), 0.02):
        assert pose is not None and np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-15)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# nothing\n", "no usable pose among 0 lines"),
        ("0 0 0 0 0 0 0 0\n", "no usable pose among 1 lines"),
        ("\n0 1 2 3 0 0 0\n", r"poses\.txt, line 2: expected 8 numbers"),
        ("0 1 2 3 0 0 0 x\n", r"poses\.txt, line 1: expected 8 numbers"),
    ],
)
def test_a_damaged_trajectory_is_named(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "poses.txt"
    file.write_text(text)
    with pytest.raises(M2HError, match=words):
        read_trajectory(file)


def test_the_trajectory_of_another_sequence_is_named_with_both_ranges(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "one")
    other = tmp_path / "other.txt"
    other.write_text("0 5 0 0 0 0 0 1\n1 5 0 0 0 0 0 1\n")
    with pytest.raises(M2HError, match=r"from 0\.000 to 1\.000 s, but the images of .* from 1000\.000 to 1000\.300 s"):
        open_sequence(root, poses=other)
    with pytest.raises(M2HError, match=r"absent\.txt: trajectory is missing"):
        open_sequence(root, poses=tmp_path / "absent.txt")


def test_given_poses_replace_those_of_the_sequence_and_may_be_in_another_clock(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "one")
    other = tmp_path / "other.txt"
    other.write_text("0 5 0 0 0 0 0 1\n0.1 6 0 0 0 0 0 1\n")
    poses = [moment.pose for moment in open_sequence(root, poses=other, offset=-1000).moments]
    assert [None if pose is None else pose[0, 3] for pose in poses] == pytest.approx([5, 6, None, None])


@pytest.mark.parametrize("options", [{"tolerance": -1}, {"tolerance": 2.0}, {"offset": float("nan")}])
def test_bad_options_are_named(tmp_path: Path, options: dict) -> None:
    with pytest.raises(M2HError, match=next(iter(options))):
        open_sequence(write_tum(tmp_path), **options)


def test_a_matrix_is_rigid_up_to_rounding() -> None:
    exact = pose_matrices(np.array([[1.0, 2.0, 3.0]]), turned(np.array([0.6, 0.8, 0.0]), 1.0)[None])[0]
    rounded = rigid(np.round(exact, 3))
    assert rounded is not None and np.allclose(rounded, exact, atol=2e-3)
    assert np.allclose(rounded[:3, :3].T @ rounded[:3, :3], np.eye(3), atol=1e-15)
    mirrored, scaled, sheared = exact.copy(), exact.copy(), exact.copy()
    mirrored[:, 0] *= -1
    scaled[:3, :3] *= 1.1
    sheared[3] = 1, 0, 0, 1
    for matrix in (mirrored, scaled, sheared, exact * np.nan, np.zeros((4, 4)), np.eye(3)):
        assert rigid(matrix) is None


def test_jumps_are_where_the_camera_moves_or_turns_too_fast(tmp_path: Path) -> None:
    sequence = open_sequence(write_tum(tmp_path, 6))
    assert jumps(sequence) == []

    def moved(index: int, x: float, degrees: float = 0.0) -> Pose:
        quaternion = turned(np.array([0.0, 1.0, 0.0]), np.radians(degrees))
        pose: Pose = pose_matrices(np.array([[x, 0.0, 0.0]]), quaternion[None])[0]
        return pose

    # 0.1 s a frame: 1 m and 72 degrees are the limits.
    poses = [moved(0, 0), moved(1, 0.99), None, moved(3, 3.1), moved(4, 3.1, 71), moved(5, 3.1, 145)]
    moments = tuple(replace(moment, pose=pose) for moment, pose in zip(sequence.moments, poses, strict=True))
    assert jumps(replace(sequence, moments=moments)) == [3, 5]
    assert jumps(replace(sequence, moments=moments[2:3])) == []
