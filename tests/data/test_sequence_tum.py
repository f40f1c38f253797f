"""Test sequences in the layout of the TUM RGB-D benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from m2h_deploy.data import NYU40_CLASSES, open_dataset
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.sequence import Sequence
from m2h_deploy.data.sequences import open_sequence
from m2h_deploy.data.sequences.tum import FREIBURG, associate
from m2h_deploy.errors import M2HError
from tests.data.sequence_folders import CAMERA, SIZE, picture, png, write_camera, write_tum


def test_frames_have_images_labels_times_and_poses(tmp_path: Path) -> None:
    sequence = open_sequence(write_tum(tmp_path))
    assert len(sequence) == 4 and sequence.size == SIZE and sequence.skipped == () and sequence.surface is None
    assert sequence.rate == pytest.approx(10) and sequence.class_names == NYU40_CLASSES
    frame = sequence[2]
    assert frame.name == "1000.200000" and frame.timestamp == pytest.approx(1000.2)
    assert np.array_equal(frame.image, picture(2))
    assert frame.depth is not None and frame.depth.dtype == np.float32 and (frame.depth == 3).all()
    assert frame.semantics is not None and (frame.semantics == 1).all()
    assert frame.intrinsics == sequence.intrinsics == Intrinsics(*(CAMERA[name] for name in ("fx", "fy", "cx", "cy")))
    assert frame.pose is not None and frame.pose.dtype == np.float64
    assert np.allclose(frame.pose, [[1, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    first = sequence[0].semantics
    assert first is not None and (first == 255).all(), "0 is unlabeled"
    names = [file.parent.name for file in sequence.files_of(0)]
    assert names == ["rgb", "depth", "labels"]


def test_a_sequence_is_a_data_set(tmp_path: Path) -> None:
    data = open_dataset(write_tum(tmp_path))
    assert isinstance(data, Sequence) and [frame.name for frame in data][:2] == ["1000.000000", "1000.100000"]


def test_normals_edges_and_the_surface_are_found(tmp_path: Path) -> None:
    root = write_tum(tmp_path, 2)
    for kind, image in (
        ("normals", np.full((*SIZE, 3), (255, 128, 128), np.uint8)),
        ("edges", np.eye(*SIZE, dtype=np.uint8) * 255),
    ):
        for name in ("1000.000000", "1000.100000"):
            png(root / kind / f"{name}.png", image)
        (root / f"{kind}.txt").write_text((root / "rgb.txt").read_text().replace("rgb/", f"{kind}/"))
    (root / "surface.ply").write_text("ply")
    sequence = open_sequence(root)
    frame = sequence[1]
    assert frame.normals is not None and np.allclose(frame.normals, (0, 0, 1), atol=0.01)
    assert frame.edges is not None and frame.edges.sum() == min(SIZE)
    assert sequence.surface == root / "surface.ply"
    lines = (root / "edges.txt").read_text().splitlines()
    (root / "edges.txt").write_text(lines[0] + "\n" + lines[1])
    partial = open_sequence(root)
    assert partial[0].edges is None and any("edges are not used" in line for line in partial.skipped)


def test_each_depth_map_is_used_once_and_the_nearest_first() -> None:
    first, second = np.array([0.0, 0.01, 0.02, 1.0]), np.array([0.011, 0.019, 0.985])
    assert associate(first, second, 0.02).tolist() == [-1, 0, 1, 2]
    assert associate(first, second, 0.005).tolist() == [-1, 0, 1, -1]
    assert associate(first, np.array([]), 0.02).tolist() == [-1] * 4


def test_association_equals_the_greedy_search_over_all_pairs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        first, second = (np.sort(rng.uniform(0, 1, rng.integers(1, 40))) for _ in range(2))
        pairs = sorted(
            (abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if abs(a - b) < 0.03
        )
        expected, used = [-1] * len(first), set()
        for _, i, j in pairs:
            if expected[i] < 0 and j not in used:
                expected[i] = j
                used.add(j)
        assert associate(first, second, 0.03).tolist() == expected


def test_an_image_without_depth_has_unknown_depth_and_is_counted(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    lines = (root / "depth.txt").read_text().splitlines()
    lines[2] = lines[2].replace("1000.100000 ", "1000.130000 ")
    (root / "depth.txt").write_text("\n".join(lines))
    sequence = open_sequence(root)
    depth = sequence[1].depth
    assert depth is not None and not depth.any() and sequence.files_of(1)[1].parent.name == "labels"
    assert sequence.skipped == (f"{root}/depth.txt: images without depth within 0.02 s: 1, the first 1000.100000",)
    assert (open_sequence(root, tolerance=0.05)[1].depth == 2).all()


def test_depth_of_another_recording_is_reported_and_not_used(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    (root / "depth.txt").write_text((root / "depth.txt").read_text().replace("\n10", "\n20"))
    sequence = open_sequence(root)
    assert sequence[0].depth is None
    assert sequence.skipped == (f"{root}/depth.txt: images without depth within 0.02 s: 4, the first 1000.000000",)


def test_only_images_are_needed(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    for name in ("depth.txt", "labels.txt", "groundtruth.txt"):
        (root / name).unlink()
    sequence = open_sequence(root)
    frame = sequence[0]
    assert frame.depth is frame.semantics is frame.normals is frame.edges is frame.pose is None
    assert sequence.class_names == ()
    assert sequence.skipped == (f"{root}/groundtruth.txt is missing: the images have no pose",)


def test_one_image_is_a_sequence(tmp_path: Path) -> None:
    sequence = open_sequence(write_tum(tmp_path, 1))
    assert len(sequence) == 1 and sequence.rate == 0 and sequence[0].pose is not None


def test_lists_are_sorted_and_repeated_times_are_counted(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    lines = (root / "rgb.txt").read_text().splitlines()
    (root / "rgb.txt").write_text("\n".join([*reversed(lines), "1000.1 rgb/1000.200000.png"]))
    sequence = open_sequence(root)
    assert [moment.name for moment in sequence.moments] == [f"1000.{n}00000" for n in range(4)]
    assert sequence.skipped == (
        f"{root}/rgb.txt: files that repeat a time stamp are left out: 1, the first {root}/rgb/1000.200000.png",
    )


def test_listed_files_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    (root / "rgb" / "1000.200000.png").unlink()
    (root / "depth" / "1000.100000.png").unlink()
    with (root / "rgb.txt").open("a") as file:
        file.write(f"\n2000.0 rgb/{'x' * 300}.png\n")  # a name that no file system supports
    sequence = open_sequence(root)
    assert [moment.name[-7:] for moment in sequence.moments] == [".000000", ".100000", ".300000"]
    text = "\n".join(sequence.skipped)
    assert f"rgb.txt: listed files that do not exist are left out: 2, the first {root}/rgb/1000.200000.png" in text
    assert f"depth.txt: listed files that do not exist are left out: 1, the first {root}/depth/1000.100000.png" in text
    for file in (root / "rgb").iterdir():
        file.unlink()
    with pytest.raises(M2HError, match=r"rgb\.txt: no image: .* do not exist"):
        open_sequence(root)


@pytest.mark.parametrize("line", ["1000.9", "x rgb/1.png", "nan rgb/1.png", "1 /etc/passwd", "1 ../secret.png"])
def test_a_damaged_list_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    root = write_tum(tmp_path, 1)
    (root / "rgb.txt").write_text(f"# comment\n\n{line}\n")
    with pytest.raises(M2HError, match=r"rgb\.txt, line 3: "):
        open_sequence(root)


def test_empty_and_binary_lists_are_named(tmp_path: Path) -> None:
    root = write_tum(tmp_path, 1)
    (root / "rgb.txt").write_text("# nothing\n")
    with pytest.raises(M2HError, match=r"rgb\.txt: no image: the list is empty"):
        open_sequence(root)
    (root / "rgb.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(M2HError, match=r"rgb\.txt: list is not a text file"):
        open_sequence(root)


def test_broken_files_are_named_when_they_are_read(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    (root / "rgb" / "1000.000000.png").write_bytes(b"no image")
    (root / "depth" / "1000.100000.png").write_bytes(b"")
    png(root / "depth" / "1000.200000.png", np.full(SIZE, 1, np.uint8))
    png(root / "rgb" / "1000.300000.png", picture(3, (24, 32)))
    sequence = open_sequence(root)
    for index, text in enumerate(
        (
            r"rgb/1000\.000000\.png: image cannot be decoded",
            r"depth/1000\.100000\.png: depth cannot be decoded",
            r"depth/1000\.200000\.png: depth is uint8, expected 16-bit",
            r"rgb/1000\.300000\.png: image is 24x32, but others of its sequence are 48x64",
        )
    ):
        with pytest.raises(M2HError, match=text):
            _ = sequence[index]


def test_depth_of_another_size_is_named(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    png(root / "depth" / "1000.000000.png", np.full((24, 32), 5000, np.uint16))
    with pytest.raises(M2HError, match=r"depth/1000\.000000\.png: depth is 24x32, but its image is 48x64"):
        _ = open_sequence(root)[0]


def test_the_published_camera_of_freiburg_is_scaled_to_the_images(tmp_path: Path) -> None:
    root = write_tum(tmp_path / "rgbd_dataset_freiburg2_desk")
    (root / "camera.json").unlink()
    assert open_sequence(root).intrinsics == FREIBURG["2"].scaled(48, 64, 480, 640)
    given = Intrinsics(40, 40, 30, 20)
    assert open_sequence(root, intrinsics=given)[0].intrinsics == given


def test_a_camera_of_larger_images_is_scaled(tmp_path: Path) -> None:
    root = write_tum(tmp_path)
    write_camera(root, width=128, height=96, fx=100.0, fy=102.0, cx=63.5, cy=47.5)
    camera = open_sequence(root).intrinsics
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((50, 51, 31.5, 23.5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 80}, r"camera\.json: for images of 80x48 \(width x height\), but these are 64x48"),
        ({"fx": 5.0}, r"camera\.json: fx is 5 pixels, expected 12\.8 to 640"),
        ({"fy": 1000.0}, r"camera\.json: fy is 1000 pixels"),
        ({"cx": 64.0}, r"camera\.json: cx is 64: the principal point is outside"),
        ({"cy": -1.0}, r"camera\.json: cy is -1: the principal point is outside"),
        ({"fx": float("nan")}, r"camera\.json: expected the numbers fx"),
        ({"cx": "31"}, r"camera\.json: expected the numbers fx"),
        ({"height": 0}, r"camera\.json: width 64 and height 0"),
    ],
)
def test_a_camera_that_does_not_fit_is_named(tmp_path: Path, changes: dict, words: str) -> None:
    root = write_tum(tmp_path, 1)
    write_camera(root, **changes)
    with pytest.raises(M2HError, match=words) as caught:
        open_sequence(root)
    assert "\n" not in str(caught.value)


def test_an_unknown_camera_is_named(tmp_path: Path) -> None:
    root = write_tum(tmp_path, 1)
    (root / "camera.json").write_text("[]")
    with pytest.raises(M2HError, match=r"camera\.json: expected the numbers"):
        open_sequence(root)
    (root / "camera.json").unlink()
    with pytest.raises(M2HError, match=r"intrinsics are unknown: write camera\.json"):
        open_sequence(root)
    with pytest.raises(M2HError, match="the given intrinsics: fx is 5000"):
        open_sequence(root, intrinsics=Intrinsics(5000, 5000, 31, 23))


def test_a_path_without_a_sequence_is_named(tmp_path: Path) -> None:
    with pytest.raises(M2HError, match=r"no known sequence\. Looked for: rgb\.txt"):
        open_sequence(tmp_path)
    with pytest.raises(M2HError, match="absent: no such file or folder"):
        open_sequence(tmp_path / "absent")
