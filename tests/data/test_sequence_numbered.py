"""Test sequences of numbered files: 7-Scenes and ScanNet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m2h_deploy.data import NYU40_CLASSES, open_dataset
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences import open_sequence
from m2h_deploy.data.sequences.scannet import registered
from m2h_deploy.data.sequences.seven_scenes import CAMERA
from m2h_deploy.errors import M2HError
from tests.data.sequence_folders import SIZE, moved, picture, png, write_matrix, write_scannet, write_seven_scenes


def test_seven_scenes_has_metric_depth_and_poses(tmp_path: Path) -> None:
    sequence = open_sequence(write_seven_scenes(tmp_path))
    assert sequence.skipped == () and sequence.size == SIZE and sequence.class_names == ()
    assert sequence.intrinsics == CAMERA.scaled(48, 64, 480, 640)
    frame = sequence[2]
    assert frame.name == "frame-000002" and frame.timestamp == pytest.approx(2 / 30)
    assert np.array_equal(frame.image, picture(2))
    assert frame.depth is not None and frame.depth[0, :3].tolist() == [0, 0, 3]
    assert frame.pose is not None and np.allclose(frame.pose, moved(2))
    assert [file.name[-9:] for file in sequence.files_of(2)] == ["color.png", "depth.png"]


def test_seven_scenes_is_a_data_set_and_its_scene_names_a_sequence(tmp_path: Path) -> None:
    root = write_seven_scenes(tmp_path / "seq-01")
    assert isinstance(open_dataset(root), Sequence)
    with pytest.raises(M2HError, match=r"no known sequence\..*; .*seq-01 is one"):
        open_sequence(tmp_path)


@pytest.mark.parametrize(
    ("write", "pose"),
    [(write_seven_scenes, "frame-000001.pose.txt"), (write_scannet, "pose/1.txt")],
    ids=["7-Scenes", "ScanNet"],
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "images without a pose file"),
        ("-inf " * 16, "images at which tracking was lost"),
        ("nan 0 0 0 " * 4, "images at which tracking was lost"),
        ("0 " * 16, "images at which tracking was lost"),
        ("1 0 0 0 0 1 0 0 0 0 1", "images whose pose file is not a rigid transform"),
        ("no matrix", "images whose pose file is not a rigid transform"),
        ("2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1", "images whose pose file is not a rigid transform"),
    ],
)
def test_an_unusable_pose_is_counted(
    tmp_path: Path, write: Callable[[Path], Path], pose: str, content: str | None, reason: str
) -> None:
    root = write(tmp_path)
    (root / pose).unlink()
    if content is not None:
        (root / pose).write_text(content)
    sequence = open_sequence(root)
    assert [index for index, moment in enumerate(sequence.moments) if moment.pose is None] == [1]
    (line,) = sequence.skipped
    assert line.startswith(f"{root}: {reason}") and line.endswith(f": 1, the first {sequence.moments[1].name}")


def test_rounded_rotations_are_made_orthonormal(tmp_path: Path) -> None:
    root = write_seven_scenes(tmp_path)
    cosine, sine = 0.866, 0.5
    rounded = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_matrix(root / "frame-000000.pose.txt", rounded)
    pose = open_sequence(root)[0].pose
    assert pose is not None and np.allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-15)
    assert np.allclose(pose, rounded, atol=1e-3)


def test_images_without_depth_are_counted_unless_there_is_no_depth(tmp_path: Path) -> None:
    root = write_seven_scenes(tmp_path)
    (root / "frame-000001.depth.png").unlink()
    sequence = open_sequence(root)
    depth = sequence[1].depth
    assert depth is not None and not depth.any()
    assert sequence.skipped == (f"{root}: images without depth: 1, the first frame-000001",)
    for file in root.glob("*.depth.png"):
        file.unlink()
    sequence = open_sequence(root)
    assert sequence[0].depth is None and sequence.skipped == ()


def test_given_poses_and_rate_replace_those_of_numbered_files(tmp_path: Path) -> None:
    root = write_seven_scenes(tmp_path / "seq")
    file = tmp_path / "odometry.txt"
    file.write_text("".join(f"{time} {7 + time} 0 0 0 0 0 1\n" for time in (0.0, 0.5, 1.0)))
    sequence = open_sequence(root, poses=file, rate=2)
    assert [moment.timestamp for moment in sequence.moments] == [0, 0.5, 1]
    assert [moment.pose[0, 3] for moment in sequence.moments if moment.pose is not None] == [7, 7.5, 8]
    with pytest.raises(M2HError, match="rate 0"):
        open_sequence(root, rate=0)


def test_scannet_has_depth_at_the_color_images_size_in_order_of_the_numbers(tmp_path: Path) -> None:
    sequence = open_sequence(write_scannet(tmp_path))
    assert [moment.name for moment in sequence.moments] == [f"{number:06d}" for number in range(11)]
    assert sequence.skipped == () and sequence.intrinsics == Intrinsics(50, 51, 31.5, 23.5)
    frame = sequence[10]
    assert frame.depth is not None and frame.depth.shape == SIZE and (frame.depth == 11).all()
    assert frame.timestamp == pytest.approx(10 / 30) and frame.pose is not None and np.allclose(frame.pose, moved(10))


def test_depth_is_looked_up_at_the_same_viewing_ray() -> None:
    """The point that a color pixel sees is the one that its depth pixel sees: a plane tilted about both axes."""
    sensor, camera = Intrinsics(80, 82, 47.2, 35.9), Intrinsics(150, 149, 101.3, 77.7)

    def plane(at: Intrinsics, height: int, width: int) -> np.ndarray:
        rays = at.rays(height, width)
        return np.asarray(1 / (0.5 + 0.05 * rays[..., 0] - 0.04 * rays[..., 1]), np.float32)

    brought = registered(plane(sensor, 72, 96), sensor, camera, (154, 205))
    expected = plane(camera, 154, 205)
    known = brought > 0
    # The nearest pixel is within half a pixel, 1/160 of the ray's slope; the inverse depth is linear in the slope.
    assert known[40:100, 60:140].all()
    assert np.abs(1 / brought[known] - 1 / expected[known]).max() <= 0.05 / 160 + 0.04 / 164 + 1e-6
    outside = np.abs((np.arange(205) - camera.cx) / camera.fx * sensor.fx + sensor.cx - 47.5) > 48
    assert outside.any() and not known[:, outside].any()


TABLE = "id\traw_category\tcategory\tcount\tnyu40id\n1\twall\twall\t9\t1\n1191\tmug\tcup\t2\t40\n7\tghost\tghost\t1\t\n"


def test_labels_of_scannet_need_the_list_that_states_their_classes(tmp_path: Path) -> None:
    root = write_scannet(tmp_path / "scans" / "scene0000_00", 2)
    labels = np.full(SIZE, 1191, np.uint16)
    labels[0, :3] = 0, 1, 7
    png(root / "label-filt" / "0.png", labels)
    sequence = open_sequence(root)
    assert sequence[0].semantics is None and sequence.class_names == ()
    assert sequence.skipped[0].startswith(f"{root}/label-filt: not used without scannetv2-labels.combined.tsv")
    (tmp_path / "scannetv2-labels.combined.tsv").write_text(TABLE)
    sequence = open_sequence(root)
    first, second = sequence[0].semantics, sequence[1].semantics
    assert first is not None and first[0, :3].tolist() == [255, 0, 255] and (first[1:] == 39).all()
    assert second is not None and (second == 255).all() and sequence.class_names == NYU40_CLASSES
    assert sequence.skipped == (f"{root}: images without semantics: 1, the first 000001",)
    png(root / "label-filt" / "1.png", labels + np.uint16(1))
    with pytest.raises(M2HError, match=r"label-filt/1\.png: label 1192, but .* ends at 1191"):
        _ = open_sequence(root)[1]
    for damaged in ("id\tname\n1\twall\n", "id\tnyu40id\n-9\t1\n", f"id\tnyu40id\n{10**15}\t1\n"):
        (tmp_path / "scannetv2-labels.combined.tsv").write_text(damaged)
        with pytest.raises(M2HError, match="expected columns 'id' and 'nyu40id'"):
            open_sequence(root)


@pytest.mark.parametrize("place", ["{0}/a_vh_clean_2.ply", "{0}_vh_clean_2.ply", "{1}/{2}_vh_clean_2.ply"])
def test_the_mesh_of_a_scene_is_found_in_it_and_beside(tmp_path: Path, place: str) -> None:
    root = write_scannet(tmp_path / "scene0000_00" / "exported", 1)
    assert open_sequence(root).surface is None
    mesh = Path(place.format(root, root.parent, root.parent.name))
    mesh.write_text("ply")
    assert open_sequence(root).surface == mesh


def test_a_missing_or_unfitting_camera_of_a_scene_is_named(tmp_path: Path) -> None:
    root = write_scannet(tmp_path, 1)
    png(root / "depth" / "0.png", np.full(SIZE, 1000, np.uint16))
    with pytest.raises(M2HError, match=r"0\.png: depth is 48x64 .* which intrinsic_depth\.txt does not fit"):
        _ = open_sequence(root)[0]
    (root / "intrinsic" / "intrinsic_depth.txt").unlink()
    with pytest.raises(M2HError, match=r"intrinsic_depth\.txt: expected the camera's matrix"):
        open_sequence(root)
    png(root / "color" / "0.jpg", picture(0, (20, 28)))
    with pytest.raises(M2HError, match=r"intrinsic_color\.txt: cx is 31\.5: the principal point is outside"):
        open_sequence(root)
    (root / "color" / "0.jpg").rename(root / "color" / "first.jpg")
    with pytest.raises(M2HError, match=r"color: no image named by its number"):
        open_sequence(root)
