"""Test videos and folders of images as sequences, with poses in a file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequences import open_sequence
from m2h_deploy.errors import M2HError
from tests.data.sequence_folders import SIZE, picture, png, write_camera

CAMERA = Intrinsics(50, 50, 31.5, 23.5)


@pytest.fixture
def poses(tmp_path: Path) -> Path:
    """Return a trajectory from 50 s on, at 10 Hz, with x in tenths of a second."""
    file = tmp_path / "poses.txt"
    file.write_text("".join(f"{50 + index / 10:.6f} {index} 0 0 0 0 0 1\n" for index in range(20)))
    return file


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video of 8 frames, 10 a second; frame i is noise of the mean 15 i + 5."""
    path = tmp_path / "walk.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV does not write MJPG")
    for index in range(8):
        noise = np.random.default_rng(index).integers(0, 20 * index + 20, (*SIZE, 3), np.uint8)
        writer.write(noise // 2 + np.uint8(10 * index))
    writer.release()
    return path


def xs(sequence) -> list[float | None]:
    return [None if moment.pose is None else round(float(moment.pose[0, 3]), 6) for moment in sequence.moments]


def test_a_video_has_times_and_poses(video: Path, poses: Path) -> None:
    sequence = open_sequence(video, poses=poses, intrinsics=CAMERA, offset=50)
    assert [moment.name for moment in sequence.moments] == [f"walk_{index:06d}" for index in range(8)]
    assert [moment.timestamp for moment in sequence.moments] == pytest.approx([index / 10 for index in range(8)])
    assert sequence.size == SIZE and sequence.skipped == () and xs(sequence) == list(range(8))
    assert len(set(sequence.names)) == 8


def test_frames_of_a_video_are_read_in_any_order(video: Path, poses: Path) -> None:
    sequence = open_sequence(video, poses=poses, intrinsics=CAMERA, offset=50)
    for index in (0, 1, 5, 2, 2, 7, 0):
        frame = sequence[index]
        assert abs(float(frame.image.mean()) - 15 * index - 5) < 5 and frame.name == f"walk_{index:06d}"
        assert frame.intrinsics == CAMERA and frame.pose is not None and frame.depth is None


def test_the_given_rate_replaces_the_times_of_a_video(video: Path, poses: Path) -> None:
    sequence = open_sequence(video, poses=poses, intrinsics=CAMERA, offset=50, rate=20)
    assert xs(sequence) == [index / 2 for index in range(8)]


def test_a_video_of_another_clock_is_named(video: Path, poses: Path) -> None:
    with pytest.raises(
        M2HError, match=r"from 50\.000 to 51\.900 s, but the images of .*walk\.avi from 0\.000 to 0\.700"
    ):
        open_sequence(video, poses=poses, intrinsics=CAMERA)


def test_a_video_needs_a_camera_and_reports_missing_poses(video: Path) -> None:
    with pytest.raises(M2HError, match="intrinsics are unknown"):
        open_sequence(video)
    write_camera(video.parent)
    sequence = open_sequence(video)
    assert sequence[3].pose is None and sequence.skipped == (
        f"{video}: the images have no pose: give their trajectory (--poses)",
    )


def test_a_truncated_video_is_reported(video: Path) -> None:
    video.write_bytes(video.read_bytes()[: int(video.stat().st_size * 0.7)])
    sequence = open_sequence(video, intrinsics=CAMERA)
    assert 0 < len(sequence) < 8 and f"is cut short: it has {len(sequence)} frames" in sequence.skipped[0]
    assert sequence[len(sequence) - 1].image.shape == (*SIZE, 3)


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(M2HError, match=r"cannot open video .*damaged\.mp4"):
        open_sequence(tmp_path / "damaged.mp4", intrinsics=CAMERA)
    with pytest.raises(M2HError, match=r"notes\.txt: a file, but not a video"):
        open_sequence(tmp_path / "notes.txt", intrinsics=CAMERA)


@pytest.mark.parametrize(
    "names", [["50.0", "50.100000", "50.35"], ["0000000050000000000", "0000000050100000000", "0000000050350000000"]]
)
def test_images_named_by_time_stamps_use_them(tmp_path: Path, poses: Path, names: list[str]) -> None:
    folder = tmp_path / "images"
    for index, name in enumerate(names):
        png(folder / f"{name}.png", picture(index))
    sequence = open_sequence(folder, poses=poses, intrinsics=CAMERA)
    assert [moment.timestamp for moment in sequence.moments] == pytest.approx([50, 50.1, 50.35])
    assert xs(sequence) == [0, 1, 3.5] and sequence.rate == pytest.approx(1 / 0.175)
    assert np.array_equal(sequence[2].image, picture(2)) and sequence[2].name == names[2]


def test_other_images_need_a_rate(tmp_path: Path, poses: Path) -> None:
    folder = tmp_path / "images"
    for index in range(3):
        png(folder / f"{index:04d}.png", picture(index))
    with pytest.raises(M2HError, match=r"0000\.png: the name is not a time stamp.* give the rate"):
        open_sequence(folder, poses=poses, intrinsics=CAMERA)
    assert xs(open_sequence(folder, poses=poses, intrinsics=CAMERA, rate=5, offset=50)) == [0, 2, 4]


def test_images_that_repeat_a_time_are_counted(tmp_path: Path, poses: Path) -> None:
    folder = tmp_path / "images"
    for index, name in enumerate(("50.1", "50.10", "50.2")):
        png(folder / f"{name}.png", picture(index))
    sequence = open_sequence(folder, poses=poses, intrinsics=CAMERA)
    assert len(sequence) == 2 and sequence.skipped == (
        f"{folder}: images that repeat a time stamp are left out: 1, the first {folder}/50.10.png",
    )
