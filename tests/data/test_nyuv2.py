"""Test that NYUv2 round-trips in both layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from m2h_deploy.data import NYU40_CLASSES, NYUv2, open_dataset
from m2h_deploy.data.nyuv2_writer import write_multitask_folder
from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.errors import M2HError
from tests.data.nyuv2_mat import FRAMES, SEED, SIZE

META = Path(__file__).parents[3] / "shared" / "nyuv2_meta"


def test_both_layouts_round_trip_a_frame(written: Path) -> None:
    from_folder = NYUv2.from_folder(written / "folder", "all")
    from_mat = NYUv2.from_mat(written / "mat" / "nyu_depth_v2_labeled.mat", split="all")
    assert len(from_folder) == len(from_mat) == FRAMES
    for index, (one, other) in enumerate(zip(from_folder, from_mat, strict=True)):
        room = render_room(SEED, index, *SIZE)
        for name in ("image", "depth", "semantics", "edges"):
            expected = getattr(room, name)
            for read in (getattr(one, name), getattr(other, name)):
                assert read.dtype == expected.dtype and np.array_equal(read, expected), name


def test_normals_survive_eight_bits_to_within_a_degree(written: Path) -> None:
    room, read = render_room(SEED, 0, *SIZE), NYUv2.from_folder(written / "folder")[0]
    assert room.normals is not None and read.normals is not None
    cosine = np.clip((room.normals * read.normals).sum(-1), -1, 1)
    assert np.degrees(np.arccos(cosine)).max() < 1.0
    assert np.allclose(np.linalg.norm(read.normals, axis=-1), 1, atol=1e-5)


def test_labels_that_are_computed_are_marked(written: Path) -> None:
    folder, mat = open_dataset(written / "folder"), open_dataset(written / "mat")
    assert folder.derived == folder[0].derived == frozenset()
    assert mat.derived == mat[0].derived == {"normals", "edges"}


def test_splits_are_one_based_in_the_file(written: Path) -> None:
    mat = written / "mat" / "nyu_depth_v2_labeled.mat"
    assert NYUv2.from_mat(mat, split="train").names == ("0001",)
    assert NYUv2.from_mat(mat, split="val").names == NYUv2.from_mat(mat, split="test").names == ("0002", "0003")
    assert np.array_equal(NYUv2.from_mat(mat, split="val")[0].image, render_room(SEED, 1, *SIZE).image)


def test_index_past_the_end_is_an_index_error(written: Path) -> None:
    with pytest.raises(IndexError):
        open_dataset(written / "folder")[FRAMES]


def test_real_splits_and_class_mapping(tmp_path: Path) -> None:
    if not META.is_dir():
        pytest.skip("the official side files are not here")
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(mat, "w") as file:
        # All 1449 frames, tiny; frame 3 carries raw labels of known classes.
        file.create_dataset("images", (1449, 3, 6, 4), np.uint8)
        file.create_dataset("depths", (1449, 6, 4), np.float32)
        file.create_dataset("labels", (1449, 6, 4), np.uint16)
        file["depths"][2] = 2.5
        file["labels"][2, 0] = [21, 11, 894, 0]
    for name in ("splits.mat", "classMapping40.mat"):
        shutil.copy(META / name, tmp_path)
    opened = {split: NYUv2.from_mat(mat, split) for split in ("train", "val", "all")}
    assert {split: len(data) for split, data in opened.items()} == {"train": 795, "val": 654, "all": 1449}
    frame = opened["train"][0]
    assert frame.name == "0003" and frame.semantics is not None
    table = loadmat(META / "classMapping40.mat")["mapClass"].ravel()
    assert frame.semantics.shape == (4, 6)
    assert frame.semantics[:, 0].tolist() == [table[20] - 1, table[10] - 1, table[893] - 1, 255]
    assert NYU40_CLASSES[frame.semantics[0, 0]] == "wall" and NYU40_CLASSES[frame.semantics[1, 0]] == "floor"


def test_writing_overwrites_nothing(folder: Path) -> None:
    before = (folder / "gt_sets" / "val.txt").read_text()
    with pytest.raises(M2HError, match="there already"):
        write_multitask_folder(folder, Rooms(1, SEED + 1, *SIZE))
    with pytest.raises(M2HError, match="use another seed"):
        write_multitask_folder(folder, Rooms(1, SEED, *SIZE), split="train")
    assert (folder / "gt_sets" / "val.txt").read_text() == before


def test_a_second_split_joins_the_same_folder(folder: Path) -> None:
    write_multitask_folder(folder, Rooms(1, SEED + 1, *SIZE), split="train")
    assert len(open_dataset(folder, "train")) == 1 and len(open_dataset(folder, "all")) == FRAMES + 1


def test_an_interrupted_writer_leaves_no_folder_that_looks_complete(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_multitask_folder(tmp_path / "folder", Rooms(2, 0, *SIZE), progress=interrupt)
    assert not list((tmp_path / "folder" / "gt_sets").iterdir())


def test_progress_counts_the_frames(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_multitask_folder(
        tmp_path / "f", Rooms(2, 0, 16, 16), progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 2), (2, 2)]
