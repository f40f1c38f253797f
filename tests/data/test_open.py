"""Test plain images, RGB-D pairs, Hypersim, Cityscapes, and the detection of the layout."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from m2h_deploy.data import CITYSCAPES_CLASSES, NYU40_CLASSES, NYU_INTRINSICS, open_dataset, palette
from m2h_deploy.data.cityscapes import Cityscapes
from m2h_deploy.data.folders import ImageFolder, RGBDPairs
from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.hypersim import SPLIT_NAME, Hypersim
from m2h_deploy.errors import M2HError

REAL_PAIRS = Path(__file__).parents[3] / "shared" / "nyuv2_frames"


def _png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


def test_an_image_folder_gives_images_in_order_and_no_labels(tmp_path: Path) -> None:
    for number in (2, 1):
        _png(tmp_path / f"{number}.png", np.full((16, 18, 3), (number, 0, 9), np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    data = open_dataset(tmp_path)
    assert isinstance(data, ImageFolder) and [f.name for f in data] == ["1", "2"]
    frame = data[1]
    assert frame.image[0, 0].tolist() == [2, 0, 9], "channels are BGR"
    assert frame.depth is frame.normals is frame.semantics is frame.edges is None


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    (tmp_path / "empty.png").write_bytes(b"")
    data = open_dataset(tmp_path)
    for index, name in enumerate(("broken.jpg", "empty.png")):
        with pytest.raises(M2HError, match=f"{name}: image cannot be decoded"):
            _ = data[index]


def test_real_pairs_are_in_meters() -> None:
    if not REAL_PAIRS.is_dir():
        pytest.skip("the recorded pairs are not here")
    data = open_dataset(REAL_PAIRS)
    assert isinstance(data, RGBDPairs) and [f.name for f in data] == ["rgb_00000", "rgb_00050"]
    frame = data[0]
    stored = cv2.imread(str(REAL_PAIRS / "sync_depth_00000.png"), cv2.IMREAD_UNCHANGED)
    assert frame.image.shape == (480, 640, 3) and frame.intrinsics == NYU_INTRINSICS
    assert frame.depth is not None and frame.depth.dtype == np.float32
    assert frame.depth.max() == pytest.approx(stored.max() / 1000)
    assert np.array_equal(frame.depth == 0, stored == 0)


def test_pairs_without_partner_or_of_other_size_are_named(tmp_path: Path) -> None:
    scene = tmp_path / "kitchen_0001"
    _png(scene / "rgb_1.jpg", np.zeros((16, 18, 3), np.uint8))
    _png(scene / "sync_depth_1.png", np.zeros((16, 19), np.uint16))
    with pytest.raises(M2HError, match=r"sync_depth_1\.png: depth is 16x19, but its image is 16x18"):
        _ = open_dataset(tmp_path)[0]
    _png(scene / "sync_depth_1.png", np.zeros((16, 18), np.uint8))
    with pytest.raises(M2HError, match="expected 16-bit"):
        _ = open_dataset(tmp_path)[0]
    (scene / "sync_depth_1.png").unlink()
    with pytest.raises(M2HError, match=r"sync_depth_1\.png: depth is missing"):
        _ = RGBDPairs.open(tmp_path)[0]


def test_pairs_in_another_unit_than_millimeters_are_named(tmp_path: Path) -> None:
    _png(tmp_path / "rgb_1.jpg", np.zeros((16, 18, 3), np.uint8))
    for meters in (2, 50_000):  # whole meters, and tenths of a millimeter
        _png(tmp_path / "sync_depth_1.png", np.full((16, 18), meters, np.uint16))
        with pytest.raises(M2HError, match=r"sync_depth_1\.png: the median depth is"):
            _ = open_dataset(tmp_path)[0]


HYPERSIM_SIZE = (16, 16)


def _hypersim(root: Path) -> Path:
    images = root / "ai_001_002" / "images"
    _png(images / "scene_cam_00_final_preview" / "frame.0007.tonemap.jpg", np.zeros((*HYPERSIM_SIZE, 3), np.uint8))
    geometry = images / "scene_cam_00_geometry_hdf5"
    geometry.mkdir()
    camera = Intrinsics(886.81 / 64, 886.81 / 64, 7.5, 7.5)
    distance = 4.0 * np.linalg.norm(camera.rays(*HYPERSIM_SIZE), axis=-1)
    distance[0, 0], distance[0, 1] = np.nan, 70.0
    normals = np.zeros((*HYPERSIM_SIZE, 3), np.float16)
    normals[..., 2], normals[5] = 1, (1, 0, 0)
    semantic = np.full(HYPERSIM_SIZE, 22, np.int16)
    semantic[:, 8:], semantic[0] = 2, -1
    for kind, array in (
        ("depth_meters", distance.astype(np.float16)),
        ("normal_cam", normals),
        ("semantic", semantic),
        ("semantic_instance", np.where(semantic == 2, 5, -1).astype(np.int16)),
    ):
        with h5py.File(geometry / f"frame.0007.{kind}.hdf5", "w") as file:
            file["dataset"] = array
    return geometry


def test_hypersim_distance_becomes_depth_along_the_axis(tmp_path: Path) -> None:
    _hypersim(tmp_path)
    data = open_dataset(tmp_path)
    assert isinstance(data, Hypersim) and data.class_names == NYU40_CLASSES
    frame = data[0]
    assert frame.name == "ai_001_002_cam_00_7"
    assert frame.depth is not None and frame.depth[0, :2].tolist() == [0.0, 0.0], "no hit, and beyond 20 m"
    assert np.allclose(frame.depth[1:], 4.0, atol=0.01), "a wall straight ahead has one depth"


@pytest.mark.parametrize(
    ("dtype", "factor", "says"),
    [(np.float32, 1000, "the median depth is"), (np.uint16, 1000, "is uint16"), (np.float32, -1, "has values down to")],
)
def test_hypersim_depth_in_another_unit_is_named(tmp_path: Path, dtype: type, factor: float, says: str) -> None:
    """Depth beyond 20 m is unknown: without a check of the unit, a frame in millimeters would have no valid depth."""
    path = _hypersim(tmp_path) / "frame.0007.depth_meters.hdf5"
    with h5py.File(path, "r+") as file:
        changed = np.nan_to_num(file["dataset"][()].astype(np.float32) * factor).astype(dtype)
        del file["dataset"]
        file["dataset"] = changed
    with pytest.raises(M2HError, match=says) as caught:
        _ = open_dataset(tmp_path)[0]
    assert str(path) in str(caught.value)


def test_hypersim_normals_and_labels_follow_the_conventions(tmp_path: Path) -> None:
    _hypersim(tmp_path)
    frame = open_dataset(tmp_path)[0]
    assert frame.normals is not None and frame.semantics is not None and frame.edges is not None
    assert frame.normals[3, 3].tolist() == [0, 0, 1], "facing the camera"
    assert frame.normals[5, 3].tolist() == [-1, 0, 0], "facing right, as the wall on the left does"
    assert frame.semantics[0, 0] == 255 and NYU40_CLASSES[frame.semantics[2, 2]] == "ceiling"
    assert frame.edges[4].nonzero()[0].tolist() == [7] and frame.derived == {"edges"}


def test_hypersim_split_follows_the_official_list(tmp_path: Path) -> None:
    _hypersim(tmp_path)
    header = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name\n"
    (tmp_path / SPLIT_NAME).write_text(header + "ai_001_002,cam_00,7,True,,test\n")
    assert len(Hypersim.open(tmp_path, "test")) == 1
    with pytest.raises(M2HError, match="no split 'val'"):
        Hypersim.open(tmp_path, "val")
    (tmp_path / SPLIT_NAME).write_text("a,b\n1,2\n")
    with pytest.raises(M2HError, match="not the list"):
        Hypersim.open(tmp_path, "test")


def test_broken_hypersim_labels_are_named(tmp_path: Path) -> None:
    geometry = _hypersim(tmp_path)
    (geometry / "frame.0007.semantic.hdf5").write_bytes(b"not HDF5")
    with pytest.raises(M2HError, match=r"frame\.0007\.semantic\.hdf5: not a Hypersim label"):
        _ = open_dataset(tmp_path)[0]
    with h5py.File(geometry / "frame.0007.semantic.hdf5", "w") as file:
        file["dataset"] = np.full(HYPERSIM_SIZE, 41, np.int16)
    with pytest.raises(M2HError, match=r"label 41, expected 1\.\.40"):
        _ = open_dataset(tmp_path)[0]


def _cityscapes(root: Path) -> str:
    name = "ulm_000001_000019"
    _png(root / "leftImg8bit" / "val" / "ulm" / f"{name}_leftImg8bit.png", np.zeros((16, 16, 3), np.uint8))
    disparity = np.full((16, 16), 20 * 256 + 1, np.uint16)
    disparity[0, :3] = 0, 1, 2
    _png(root / "disparity" / "val" / "ulm" / f"{name}_disparity.png", disparity)
    labels = np.full((16, 16), 7, np.uint8)
    labels[:, 4:], labels[3] = 26, 3
    _png(root / "gtFine" / "val" / "ulm" / f"{name}_gtFine_labelIds.png", labels)
    _png(
        root / "gtFine" / "val" / "ulm" / f"{name}_gtFine_instanceIds.png",
        np.where(labels == 26, 26001, labels).astype(np.uint16),
    )
    camera = {"intrinsic": {"fx": 2000.0, "fy": 2000.0, "u0": 4.0, "v0": 2.0}, "extrinsic": {"baseline": 0.2}}
    path = root / "camera" / "val" / "ulm" / f"{name}_camera.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(camera))
    return name


def test_cityscapes_disparity_becomes_depth(tmp_path: Path) -> None:
    name = _cityscapes(tmp_path)
    data = open_dataset(tmp_path)
    assert isinstance(data, Cityscapes) and data.class_names == CITYSCAPES_CLASSES
    frame = data[0]
    assert frame.name == name and frame.depth is not None
    assert frame.depth[0, :3].tolist() == [0, 0, 0], "unknown, infinitely far, beyond 80 m"
    assert frame.depth[1, 1] == pytest.approx(2000 * 0.2 / 20)


def test_cityscapes_disparity_in_whole_pixels_is_named(tmp_path: Path) -> None:
    name = _cityscapes(tmp_path)
    path = tmp_path / "disparity" / "val" / "ulm" / f"{name}_disparity.png"
    _png(path, np.full((16, 16), 20, np.uint16))
    with pytest.raises(M2HError, match="the median depth is 5") as caught:
        _ = open_dataset(tmp_path)[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cityscapes_camera_without_a_baseline_is_named(tmp_path: Path, value: float) -> None:
    name = _cityscapes(tmp_path)
    path = tmp_path / "camera" / "val" / "ulm" / f"{name}_camera.json"
    path.write_text(path.read_text().replace('"baseline": 0.2', f'"baseline": {json.dumps(value)}'))
    with pytest.raises(M2HError, match=r"camera\.json: focal lengths and the baseline"):
        _ = open_dataset(tmp_path)[0]


def test_cityscapes_labels_are_train_ids(tmp_path: Path) -> None:
    _cityscapes(tmp_path)
    frame = open_dataset(tmp_path)[0]
    assert frame.semantics is not None and frame.edges is not None
    assert CITYSCAPES_CLASSES[frame.semantics[0, 0]] == "road" and CITYSCAPES_CLASSES[frame.semantics[0, 7]] == "car"
    assert (frame.semantics[3] == 255).all()
    assert frame.edges[0].nonzero()[0].tolist() == [3]
    assert frame.normals is None


def test_cityscapes_without_camera_files_uses_the_published_camera(tmp_path: Path) -> None:
    name = _cityscapes(tmp_path)
    path = tmp_path / "camera" / "val" / "ulm" / f"{name}_camera.json"
    for content in ("{}", '{"intrinsic":' * 100_000):
        path.write_text(content)
        with pytest.raises(M2HError, match="not a Cityscapes camera file"):
            _ = open_dataset(tmp_path)[0]
    path.unlink()
    _png(tmp_path / "disparity" / "val" / "ulm" / f"{name}_disparity.png", np.full((16, 16), 65, np.uint16))
    frame = open_dataset(tmp_path)[0]
    assert frame.intrinsics is not None and frame.intrinsics.fx == pytest.approx(2262.52 * 16 / 2048)
    with pytest.raises(M2HError, match="for split 'train'"):
        open_dataset(tmp_path, "train")


def test_the_error_for_an_unknown_path_lists_the_known_layouts(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file.txt"):
        if path.suffix:
            path.write_text("")
        with pytest.raises(M2HError) as caught:
            open_dataset(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(M2HError, match=r"gt_sets/.*leftImg8bit/"):
        open_dataset(tmp_path)


def test_scaled_intrinsics_keep_the_field_of_view() -> None:
    small = NYU_INTRINSICS.scaled(240, 320, 480, 640)
    assert small.fx == pytest.approx(NYU_INTRINSICS.fx / 2)
    # The ray through the image's corner, half a pixel outside the first pixel center, does not change.
    assert (-0.5 - small.cx) / small.fx == pytest.approx((-0.5 - NYU_INTRINSICS.cx) / NYU_INTRINSICS.fx)


def test_palette_colors_are_distinct() -> None:
    assert len({tuple(c) for c in palette(40).tolist()}) == 40
