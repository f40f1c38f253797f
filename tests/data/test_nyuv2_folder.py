"""Test NYUv2 as a folder of files: older forms are read, and one-line errors name what is damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from m2h_deploy.data import open_dataset
from m2h_deploy.data.rooms.render import render_room
from m2h_deploy.errors import M2HError
from tests.data.nyuv2_mat import SEED, SIZE


def _first(folder: Path, kind: str, suffix: str) -> Path:
    return folder / kind / f"room_{SEED}_00000{suffix}"


def _save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        cv2.imwrite(str(path), array)


def _nan_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    depth[3, 4] = np.nan
    np.save(path, depth)
    return path


def _negative_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    np.save(path, np.full(SIZE, -1, np.float32))
    return path


def _scaled_depth(dtype: type, factor: float) -> Callable[[Path], Path]:
    """Write the depth in another unit."""

    def spoil(folder: Path) -> Path:
        path = _first(folder, "depth", ".npy")
        np.save(path, (np.load(path) * factor).astype(dtype))
        return path

    return spoil


def _pickled_depth(folder: Path) -> Path:
    path = _first(folder, "depth", ".npy")
    np.save(path, np.array([{"no": "thanks"}], object), allow_pickle=True)
    return path


def _missing(kind: str, suffix: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        path.unlink()
        return path

    return spoil


def _replaced(kind: str, suffix: str, array: np.ndarray) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        _save(path, array)
        return path

    return spoil


def _cut(kind: str, suffix: str) -> Callable[[Path], Path]:
    def spoil(folder: Path) -> Path:
        path = _first(folder, kind, suffix)
        path.write_bytes(path.read_bytes()[:40])
        return path

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_missing("images", ".png"), "image is missing"),
        (_missing("depth", ".npy"), "depth is missing"),
        (_missing("normals", ".png"), "normals is missing"),
        (_missing("segmentation", ".png"), "segmentation is missing"),
        (_missing("edge", ".png"), "edge is missing"),
        (_cut("images", ".png"), "cannot be decoded"),
        (_cut("depth", ".npy"), "not a readable .npy"),
        (_nan_depth, "1 NaN"),
        (_negative_depth, "down to -1"),
        (_pickled_depth, "not a readable .npy"),
        (_replaced("depth", ".npy", np.ones((10, 12), np.float32)), "10x12"),
        (_replaced("segmentation", ".png", np.full(SIZE, 41, np.uint8)), "label 41, expected 1..40"),
        (_replaced("segmentation", ".png", np.zeros((9, 9), np.uint8)), "9x9"),
        (_replaced("segmentation", ".png", np.dstack([np.full(SIZE, n, np.uint8) for n in (1, 2, 3)])), "3 color"),
        (_replaced("normals", ".png", np.zeros((9, 9, 3), np.uint8)), "9x9"),
        (_replaced("edge", ".png", np.zeros((9, 9), np.uint8)), "9x9"),
        (_replaced("edge", ".png", np.full(SIZE, 40, np.uint8)), "edges are 40 to 40, expected 0 and 1"),
        (_replaced("images", ".png", np.zeros(SIZE, np.uint16)), "16-bit depth map, not a picture"),
        (_replaced("images", ".png", np.arange(48, dtype=np.uint8)[:, None].repeat(64, 1) // 8 * 3), "label map"),
        (_scaled_depth(np.uint16, 1000), "depth is uint16, expected floating-point meters"),
        (_scaled_depth(np.int32, 1000), "depth is int32"),
        (_scaled_depth(np.uint8, 1), "depth is uint8"),
        (_scaled_depth(np.complex64, 1), "depth is complex64"),
        (_scaled_depth(np.float32, 1000), "the median depth is"),
        (_scaled_depth(np.float16, 100), "the median depth is"),
        (_scaled_depth(np.float64, 0.001), "the median depth is"),
        (_scaled_depth(np.float32, np.inf), "NaN or infinite"),
    ],
)
def test_a_broken_file_is_named_in_one_line(folder: Path, spoil: Callable[[Path], Path], says: str) -> None:
    path = spoil(folder)
    with pytest.raises(M2HError) as caught:
        _ = open_dataset(folder)[0]
    message = str(caught.value)
    assert str(path) in message and says in message and "\n" not in message


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_meters_of_any_floating_point_type_are_read(folder: Path, dtype: str) -> None:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    depth[:24] = 0
    np.save(path, depth.astype(dtype))
    read = open_dataset(folder)[0].depth
    assert read is not None and read.dtype == np.float32 and np.allclose(read, depth, atol=0.01)


def test_a_frame_without_any_depth_is_unknown_everywhere(folder: Path) -> None:
    np.save(_first(folder, "depth", ".npy"), np.zeros(SIZE, np.float32))
    read = open_dataset(folder)[0].depth
    assert read is not None and not read.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda normals: np.rint((normals + 1) * 127.5).astype(np.uint8), "normals are uint8"),
        (lambda normals: (normals + 3) * 100, "no normal is a unit vector"),
        (lambda normals: np.where(normals > 0.9, np.inf, normals), "NaN or infinity"),
    ],
)
def test_normals_of_another_encoding_are_named(
    folder: Path, change: Callable[[np.ndarray], np.ndarray], says: str
) -> None:
    _first(folder, "normals", ".png").unlink()
    path = _first(folder, "normals", ".npy")
    np.save(path, change(render_room(SEED, 0, *SIZE).normals))
    with pytest.raises(M2HError, match=says) as caught:
        _ = open_dataset(folder)[0]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("save", [np.save, np.savez])
def test_a_truncated_array_is_named(folder: Path, save: Callable[..., None], share: float) -> None:
    path = _first(folder, "depth", ".npy")
    depth = np.load(path)
    with path.open("wb") as stream:
        save(stream, depth)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(M2HError, match=r"depth is not a readable \.npy file"):
        _ = open_dataset(folder)[0]


def test_a_label_whose_folder_is_absent_is_none(folder: Path) -> None:
    shutil.rmtree(folder / "normals")
    shutil.rmtree(folder / "depth")
    frame = open_dataset(folder)[0]
    assert frame.normals is None and frame.depth is None and frame.semantics is not None


def test_zero_in_the_segmentation_is_unlabeled(folder: Path) -> None:
    _save(_first(folder, "segmentation", ".png"), np.repeat(np.uint8([[0, 40]]), 32, axis=1).repeat(48, axis=0))
    semantics = open_dataset(folder)[0].semantics
    assert semantics is not None and semantics[0, 0] == 255 and semantics[0, -1] == 39


def test_black_and_gray_pixels_are_not_normals(folder: Path) -> None:
    colors = np.full((*SIZE, 3), (255, 128, 128), np.uint8)
    colors[0], colors[1] = 0, 128
    _save(_first(folder, "normals", ".png"), colors)
    normals = open_dataset(folder)[0].normals
    assert normals is not None and (normals[:2] == 0).all()
    assert np.allclose(normals[2:], (0, 0, 1), atol=0.01)


def test_older_folders_with_jpg_and_npy_are_read(folder: Path) -> None:
    room = render_room(SEED, 0, *SIZE)
    for kind, array in (("normals", room.normals), ("edge", room.edges)):
        _first(folder, kind, ".png").unlink()
        np.save(_first(folder, kind, ".npy"), array)
    _first(folder, "images", ".png").unlink()
    cv2.imwrite(str(_first(folder, "images", ".jpg")), room.image)
    np.save(_first(folder, "depth", ".npy"), room.depth[..., None])
    frame = open_dataset(folder)[0]
    assert np.array_equal(frame.edges, room.edges) and np.array_equal(frame.depth, room.depth)
    assert frame.normals is not None and np.allclose(frame.normals, room.normals, atol=1e-6)


@pytest.mark.parametrize(("line", "says"), [("", "empty"), ("../x", "not the name"), ("a\0b", "not the name")])
def test_bad_lists_are_named(folder: Path, line: str, says: str) -> None:
    (folder / "gt_sets" / "val.txt").write_text(line + "\n")
    with pytest.raises(M2HError, match=says):
        open_dataset(folder)


def test_a_binary_list_is_named(folder: Path) -> None:
    (folder / "gt_sets" / "val.txt").write_bytes(b"\xff\xfe\xeb")
    with pytest.raises(M2HError, match=r"val\.txt: not a readable list"):
        open_dataset(folder)


def test_the_error_for_an_absent_split_lists_the_available_ones(folder: Path) -> None:
    with pytest.raises(M2HError, match=r"'train'; there is val"):
        open_dataset(folder, "train")
